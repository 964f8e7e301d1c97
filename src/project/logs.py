"""Log lines: one per event, made only of fields that are allowed by name."""

import json
import logging
import math
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

import click
import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import ExceptionRenderer, JSONRenderer, TimeStamper
from structlog.stdlib import ExtraAdder, LoggerFactory, ProcessorFormatter, add_log_level, add_logger_name

# What `extra={...}` may hold; anything else is dropped. Add a name only if its values can never be a secret,
# an e-mail address or a text that a user wrote.
FIELDS = frozenset(
    {
        "action",
        "actor_id",
        "amount",
        "attempt",
        "check",
        "checks",
        "code",
        "count",
        "duration_ms",
        "error",
        "event_id",
        "file",
        "ip",
        "job_id",
        "kind",
        "method",
        "payment_id",
        "reason",
        "request_id",
        "role",
        "route",
        "seconds",
        "session_id",
        "size",
        "status",
        "storage",
        "target_id",
        "target_type",
        "task",
        "template",
        "user_id",
    }
)

_ALWAYS = frozenset({"event", "exception", "level", "logger", "request_id", "time"})
_MAX_LENGTH = 1000
_MAX_ITEMS = 20
_MAX_FRAMES = 40
_MAX_CHAIN = 8
_HIDDEN = "…"
_REFUSED = "Invalid request"
_HANDLER = "project"
# Commands that serve until they are stopped; their logs go where a server's do.
_SERVING = {"run", "worker"}
# Libraries speak from `warning` on, gunicorn and granian from `info`: they say when workers come and go. The other ones
# would set a level of their own, and write a line with the whole path for every request.
_LIBRARIES = {
    "_granian": logging.INFO,
    "gunicorn.error": logging.INFO,
    "gunicorn.access": logging.WARNING,
    "werkzeug": logging.WARNING,
}

# What gunicorn says of itself; its other lines quote requests.
_OF_GUNICORN = ("Starting gunicorn", "Listening at", "Using worker", "Handling signal", "Worker (pid:", "Shutting down")

# One for all lines: json.dumps would make another for each.
_encoder = json.JSONEncoder()

Event = MutableMapping[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class _Output(logging.Handler):
    """Standard output for servers. Commands print for people: there only warnings, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        command = click.get_current_context(silent=True)
        for_people = command is not None and command.info_name not in _SERVING
        if for_people and record.levelno < logging.WARNING:
            return
        try:
            stream = sys.stderr if for_people else sys.stdout
            stream.write(self.format(record) + "\n")
            stream.flush()
        except Exception:  # noqa: BLE001  # as in the standard library: a log line must not break what it tells of
            self.handleError(record)


def configure(*, level: str, readable: bool, request_id: Callable[[], str | None]) -> None:
    """Set up logging for the process; a second call replaces the first.

    Args:
        level: the least level of our own events: DEBUG, INFO, WARNING or ERROR.
        readable: lines for a developer instead of JSON.
        request_id: says to which request a line belongs.
    """
    handler = _Output()
    handler.set_name(_HANDLER)
    handler.setFormatter(_formatter(readable=readable, request_id=request_id))
    root = logging.getLogger()
    for old in [item for item in root.handlers if item.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("project").setLevel(level)
    for name, least in _LIBRARIES.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(least)
    # Whoever uses structlog itself goes the same way, and so through the same list of fields.
    structlog.configure(processors=[ProcessorFormatter.wrap_for_formatter], logger_factory=LoggerFactory())


def _formatter(*, readable: bool, request_id: Callable[[], str | None]) -> logging.Formatter:
    def add_request_id(_logger: Any, _method: str, event: Event) -> Event:
        if (current := request_id()) is not None:
            event["request_id"] = current
        return event

    exceptions = ExceptionRenderer() if readable else ExceptionRenderer(_frames)
    console = ConsoleRenderer(
        colors=sys.stdout.isatty(), pad_event_to=0, timestamp_key="time", exception_formatter=plain_traceback
    )
    return ProcessorFormatter(
        foreign_pre_chain=[_name_event, ExtraAdder(sorted(FIELDS))],
        processors=[
            add_log_level,
            add_logger_name,
            TimeStamper(fmt="iso", key="time"),
            add_request_id,
            exceptions,
            _allow,
            *([_indent_exception, console] if readable else [JSONRenderer(_json)]),
        ],
        use_get_message=False,
        pass_foreign_args=True,
    )


def _json(event: Event, **_options: Any) -> str:
    return _encoder.encode(event)


def _name_event(_logger: Any, _method: str, event: Event) -> Event:
    """Name what a record of the standard library's logging tells of."""
    record: logging.LogRecord = event["_record"]
    arguments = event.pop("positional_args", ())
    if arguments and record.name == "gunicorn.error" and event["event"].startswith(_OF_GUNICORN):
        event["event"] %= arguments
    else:
        event["event"] = _hide_arguments(event["event"], arguments)
    if record.name == "gunicorn.error" and event["event"].startswith(_REFUSED):
        # It goes on with the line that could not be parsed, which may be a misspelt Authorization.
        event["event"] = _REFUSED
    if record.name.startswith("procrastinate") and hasattr(record, "action"):
        # Its texts contain the arguments of the job.
        event["event"] = str(record.action)
        job = getattr(record, "job", None)
        if isinstance(job, Mapping):
            event.update(job_id=job.get("id"), task=job.get("task_name"))
    return event


def _hide_arguments(template: str, arguments: Any) -> str:
    """Fill in the numbers of a message; other arguments are data of any kind, such as a path with a token."""
    if not arguments:
        return template
    try:
        if isinstance(arguments, Mapping):
            return template % {name: _number(value) for name, value in arguments.items()}
        return template % tuple(_number(value) for value in arguments)
    except (TypeError, ValueError, KeyError):
        return template


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else _HIDDEN


def _allow(_logger: Any, _method: str, event: Event) -> Event:
    """Keep what is allowed, in a form that cannot break the line."""
    return {
        name: value if name == "exception" else _plain(value)
        for name, value in event.items()
        if name in FIELDS or name in _ALWAYS
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str | float | UUID | date | Path):
        return _escape(str(value)[:_MAX_LENGTH])
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in list(value)[:_MAX_ITEMS]]
    return f"<{type(value).__name__}>"


def _escape(text: str) -> str:
    """Show line breaks, terminal codes, U+2028 and the like as escapes, so that nobody can forge a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _frames(exc_info: ExcInfo) -> str:
    """Format a traceback without locals and without the exceptions' texts, which quote users' data.

    The line of source that raised shows what the text was about.
    """
    error: BaseException | None = exc_info[1]
    parts: list[str] = []
    while error is not None and len(parts) < _MAX_CHAIN:
        frames = "".join(traceback.format_tb(error.__traceback__, limit=-_MAX_FRAMES))
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nafter\n\n".join(parts)


def _indent_exception(_logger: Any, _method: str, event: Event) -> Event:
    # In a terminal a traceback may take many lines, but none that looks like an event.
    if "exception" in event:
        event["exception"] = "\n".join(f"    | {_escape(line)}" for line in event["exception"].splitlines())
    return event
