"""Mail: render a template and hand it to the backend that MAIL_URL names."""

import logging
import smtplib
import ssl
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from email.headerregistry import Address, AddressHeader
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from flask import Flask, current_app
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from project import jobs
from project.config import Settings, settings
from project.database import utcnow
from project.environment import ConfigError
from project.signing import digest

logger = logging.getLogger(__name__)

PRODUCT_NAME = "Project"
TIMEOUT_SECONDS = 10

_templates = Environment(
    loader=PackageLoader("project", "templates/mail"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Message:
    """A rendered mail. A job that runs again, since its process was killed, makes one with the same `id`."""

    id: str
    template: str
    to: str
    subject: str
    text: str
    html: str
    context: dict[str, Any]


Backend = Callable[[Message, EmailMessage], None]


@dataclass(frozen=True, repr=False)
class SmtpServer:
    """Where mails are handed in. It has no repr, so that the password reaches no log.

    `encryption` is `implicit` (smtps), `required` (STARTTLS, or nothing is sent) or `off`.
    """

    host: str
    port: int
    user: str
    password: str
    encryption: str


def send(template: str, *, to: str, **context: Any) -> None:
    """Send the mail `templates/mail/<template>` to one address; `context` fills in the template.

    Raises:
        ValueError: `to` is not exactly one address.
        smtplib.SMTPException, OSError: it was not accepted; the job that sends it tries again.
    """
    message = _render(template, to=to, context=context)
    backend: Backend = current_app.extensions["mail"]
    backend(message, _compose(message))


def app_link(path: str, token: str) -> str:
    """Return a link into the client application; the fragment keeps the token out of every server's logs."""
    return f"{settings.app_url}{path}#token={quote(token, safe='')}"


def init_app(app: Flask) -> None:
    """Choose the backend that MAIL_URL names.

    - `file:` writes each mail to DATA_DIR/outbox/*.eml
    - `smtp://user:password@host:port` uses STARTTLS when there is a password, else with `?starttls=required`
      only; `?starttls=off` says that the way to the server is private
    - `smtps://user:password@host:port` is encrypted from the first byte (RFC 8314)
    - `memory:` keeps the messages in `app.extensions["outbox"]`, for tests

    Certificates are always verified.

    Raises:
        ConfigError: MAIL_URL or MAIL_FROM is wrong.
    """
    config: Settings = app.extensions["settings"]
    _sender(config.mail_from)
    app.extensions["mail"] = _backend(app, config)


def _backend(app: Flask, config: Settings) -> Backend:
    match urlsplit(config.mail_url).scheme:
        case "memory":
            outbox: list[Message] = app.extensions.setdefault("outbox", [])
            return lambda message, _email: outbox.append(message)
        case "file":
            return partial(_write, config.outbox)
        case _:
            return partial(_deliver, _smtp_server(config.mail_url))


def _sender(mail_from: str) -> Address:
    """Return the one address of MAIL_FROM."""
    sender = _one_address(mail_from)
    if sender is None:
        raise ConfigError("MAIL_FROM must be one address, such as: Project <no-reply@example.com>")
    return sender


def _one_address(value: str) -> Address | None:
    """Parse what must be exactly one address, with or without a name; a line break would start a new header."""
    try:
        header = SMTP.header_factory("To", value if value.isprintable() else "")
    except IndexError:  # the standard library stumbles over "ann@"
        return None
    addresses = header.addresses if isinstance(header, AddressHeader) else ()
    found = addresses[0] if len(addresses) == 1 else None
    return found if found and found.username and found.domain else None


def _smtp_server(url: str) -> SmtpServer:
    expected = "smtp://user:password@host:port, smtps://… or file:, with ?starttls=required or ?starttls=off"
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, strict_parsing=bool(parts.query))
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"MAIL_URL must be {expected}") from error
    secure = parts.scheme == "smtps"
    starttls = options.pop("starttls", ["required" if parts.username else "off"])[-1]
    if (
        not parts.hostname
        or options
        or starttls not in {"required", "off"}
        or bool(parts.username) != bool(parts.password)
    ):
        raise ConfigError(f"MAIL_URL must be {expected}")
    return SmtpServer(
        host=parts.hostname,
        # RFC 8314 §3.3 and RFC 6409: 465 is TLS, 587 is for clients with a password, 25 is between servers.
        port=port or (465 if secure else 587 if parts.username else 25),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        encryption="implicit" if secure else starttls,
    )


def _render(template: str, *, to: str, context: dict[str, Any]) -> Message:
    """Fill in both parts. The first line of the text template is the subject."""
    values = {name: _one_line(value) for name, value in context.items()}
    values |= {"to": to, "product": PRODUCT_NAME, "app_url": settings.app_url}
    subject, _, text = _templates.get_template(f"{template}.txt").render(values).partition("\n")
    html = _templates.get_template(f"{template}.html").render(values, subject=subject)
    return Message(_id(template, to=to), template, to, subject, text.strip() + "\n", html.strip() + "\n", context)


def _id(template: str, *, to: str) -> str:
    key = jobs.current_key()
    moment, _, _ = key.partition("-")
    return f"{moment}-{template}-{digest('mail', f'{key} {template} {to}'.encode()).hex()[:24]}"


def _one_line(value: Any) -> Any:
    # What a value says must not look like a paragraph, a link on its own line or a header of ours.
    if not isinstance(value, str):
        return value
    return "".join(character if character.isprintable() else " " for character in value)


def _compose(message: Message) -> EmailMessage:
    """Build the MIME message. Header values with a line break raise: the policy refuses them."""
    sender, recipient = _sender(settings.mail_from), _one_address(message.to)
    if recipient is None or recipient.addr_spec != message.to:
        raise ValueError("a mail goes to exactly one address")
    email = EmailMessage(policy=SMTP)
    email["Subject"] = message.subject
    email["From"] = sender
    email["To"] = recipient
    email["Date"] = utcnow()
    # By which servers on the way may recognise one that they have had. Short, since a long line would be folded.
    email["Message-ID"] = f"<{message.id.rpartition('-')[2]}@{sender.domain}>"
    # RFC 3834 §5: vacation notices are not sent in answer to it.
    email["Auto-Submitted"] = "auto-generated"
    email.set_content(message.text, cte=_transfer_encoding(message.text))
    email.add_alternative(message.html, subtype="html", cte=_transfer_encoding(message.html))
    return email


def _transfer_encoding(text: str) -> str:
    # Never quoted-printable, which would break the link into pieces.
    return "7bit" if text.isascii() else "8bit"


def _write(outbox: Path, message: Message, email: EmailMessage) -> None:
    """Write the mail to a file that appears complete, once; names sort by the time when the mail was asked for."""
    outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{message.id}.eml"
    draft = outbox / f".{name}.{get_ident()}.tmp"
    draft.touch(mode=0o600)
    draft.write_bytes(email.as_bytes(policy=email.policy.clone(linesep="\n")))
    draft.rename(outbox / name)
    logger.info("mail_written", extra={"template": message.template, "file": str(outbox / name)})


def try_out() -> str:
    """Reach the place where mails go, and send none; return what it is.

    Raises:
        OSError, smtplib.SMTPException: it is not reached, or refuses us.
    """
    if not settings.mail_url.startswith("smtp"):
        return settings.mail_url.partition(":")[0]
    server = _smtp_server(settings.mail_url)
    with closing(_greeted(server)) as connection:
        connection.noop()
    return f"{server.host}, port {server.port}"


def _deliver(server: SmtpServer, message: Message, email: EmailMessage) -> None:
    """Hand the mail to the server; returning means that the server took it."""
    body = email.as_bytes()
    with closing(_greeted(server)) as connection:
        eight_bit = not body.isascii() and connection.has_extn("8bitmime")
        options = ["BODY=8BITMIME"] if eight_bit else []
        connection.sendmail(_sender(settings.mail_from).addr_spec, [message.to], body, options)
        # The server has taken the mail: a failing goodbye must not make the job send it again.
        with suppress(smtplib.SMTPException, OSError):
            connection.quit()
    logger.info("mail_sent", extra={"template": message.template})


def _greeted(server: SmtpServer) -> smtplib.SMTP:
    """Return a connection on which we are known and encrypted as the settings want."""
    connection = _connect(server, domain=_sender(settings.mail_from).domain)
    try:
        if server.encryption == "required":
            connection.starttls(context=ssl.create_default_context())
        if server.user:
            connection.login(server.user, server.password)
        connection.ehlo_or_helo_if_needed()
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(server: SmtpServer, *, domain: str) -> smtplib.SMTP:
    # Our name is given, since looking it up may wait long for a name server.
    if server.encryption == "implicit":
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(server.host, server.port, domain, timeout=TIMEOUT_SECONDS, context=context)
    return smtplib.SMTP(server.host, server.port, domain, timeout=TIMEOUT_SECONDS)
