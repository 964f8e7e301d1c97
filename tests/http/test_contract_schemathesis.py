"""Schemathesis tries the whole OpenAPI document on a server: every answer has to be as documented, and none a 5xx.

TEST_FUZZ_EXAMPLES sets how many examples an operation gets; any but the default also makes them random.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.openapi.checks import MissingHeaderNotRejected, RejectedPositiveData

from tests.http.client import PASSWORD, PROXIED, Account, Api, check_answer, log_in
from tests.http.cluster import SETTINGS, check_log, flask
from tests.http.tokens import claims_of
from tests.servers import create_database, run_server

DEFAULT_EXAMPLES = 10
EXAMPLES = int(os.environ.get("TEST_FUZZ_EXAMPLES", DEFAULT_EXAMPLES))
CONFIG = {
    "request-timeout": 15,
    "continue-on-failure": True,
    "generation": {
        "max-examples": EXAMPLES,
        "deterministic": EXAMPLES == DEFAULT_EXAMPLES,
        "database": "none",
        "with-security-parameters": False,
    },
}
# The document does not tell that a token, cursor, key or password of the right form is not the right one, that a text
# which looks like an address is none, that a password is easy to guess, or that no text may hold NUL. Of files it does
# not tell how large they are or may be, that bytes are not those of the digest, or that they are no picture. Of
# payments it does not tell which amounts a price or a currency has, that a price is retired, or who signed a webhook.
BEYOND_THE_DOCUMENT = {
    "digest_mismatch",
    "empty_file",
    "file_too_large",
    "idempotency_key_reused",
    "invalid_amount",
    "invalid_characters",
    "invalid_credentials",
    "invalid_currency",
    "invalid_cursor",
    "invalid_digest",
    "invalid_email",
    "invalid_link",
    "invalid_payment_method",
    "invalid_signature",
    "not_an_image",
    "password_too_common",
    "password_too_long",
    "password_too_short",
    "precondition_failed",
    "price_inactive",
    "range_not_satisfiable",
}
# Nor what an address has to be that a browser is sent to, or how long the names in an object may be.
BEYOND_FORMATS = {"/return_url", "/metadata"}
# These end the session they are called with.
LAST_CALLS = {"logout", "refresh", "endSession", "endSessions"}


@dataclass
class Run:
    """One run of Schemathesis and what came of it."""

    failures: dict[tuple[str | None, str], str] = field(default_factory=dict)
    statuses: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    calls: int = 0

    def note(self, event: events.EngineEvent) -> None:
        """Take what matters from an event of the engine."""
        if isinstance(event, events.NonFatalError):
            self.failures[event.label, "error"] = str(event.value)
        elif isinstance(event, events.FatalError):
            raise event.exception
        elif isinstance(event, events.ScenarioFinished):
            self._note_answers(event.recorder)
            self._note_failures(event.recorder)

    def _note_answers(self, recorder: ScenarioRecorder) -> None:
        for interaction in recorder.interactions.values():
            self.calls += 1
            # Not what methods that do not exist were answered, nor OPTIONS.
            if interaction.response is not None and recorder.label.startswith(f"{interaction.request.method} "):
                self.statuses[recorder.label].add(interaction.response.status_code)

    def _note_failures(self, recorder: ScenarioRecorder) -> None:
        for case_id, checks in recorder.checks.items():
            for check in checks:
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    response = recorder.find_response(case_id=failure.case_id or case_id)
                    answer = (response.status_code, response.content) if response else None
                    told = f"{failure.title}: {failure.message}\n{check.failure_info.code_sample}\n{answer}"
                    self.failures.setdefault((failure.operation, check.name), told)


@schemathesis.check
def answer_is_like_all_others(_context: Any, response: Any, case: Any) -> None:
    """Headers and bodies are what tests.http.client demands of every answer."""
    headers = {name: values[0] for name, values in response.headers.items()}
    check_answer(response.status_code, Headers(headers), response.content, case.formatted_path)


class Headers(dict[str, str]):
    """Headers by name in any case."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in headers.items()})

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())


@contextmanager
def serve(database_url: str) -> Iterator[Api]:
    """Run a server without limits on a database with the two administrators that are needed."""
    env = {**SETTINGS, "APP_ENV": "testing", "RATE_LIMITS": "off", "DATABASE_URL": database_url}
    make_administrators(env)
    with run_server(env) as server:
        yield Api(server.url)
        check_log(server.log)


def make_administrators(env: Mapping[str, str]) -> None:
    for name in ("caller", "leaver"):
        flask(env, "users", "create-admin", address(name), "--password-stdin", entered=PASSWORD)


def address(name: str) -> str:
    return f"canary-{name}@example.com"


@pytest.fixture(params=["user on sqlite", "admin on postgresql"])
def caller(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Account]:
    """A signed-in account on a server of its own, a user's or an administrator's; or the latter on the stack."""
    role, _, kind = request.param.partition(" on ")
    if "TEST_STACK" in os.environ:
        if role == "user":
            pytest.skip("nothing is fuzzed twice on one stack")
        stack = request.getfixturevalue("cluster")
        make_administrators(stack.env)
        yield log_in(Api(stack.first.url), address("caller"))
        return
    if kind == "sqlite":
        database_url = f"sqlite:///{tmp_path_factory.mktemp('fuzzed') / 'project.db'}"
        flask({**SETTINGS, "APP_ENV": "testing", "DATABASE_URL": database_url}, "db", "upgrade")
    else:
        postgres_url = request.getfixturevalue("postgres_url")
        database_url = create_database(postgres_url, f"project_fuzz_{worker_id}", request.getfixturevalue("template"))
    with serve(database_url) as server:
        caller = log_in(server, address("caller"))
        leaver = log_in(server, address("leaver"))
        assert leaver.api.patch(f"/v1/users/{caller.id}", json={"role": role}).status_code == 200
        # Signed in again, the token tells the new role.
        yield log_in(server, caller.email)


def is_expected(failure: Failure, case: Any, response: Any) -> bool:
    """Tell whether the API refuses what the document allows, or the other way round, for a reason."""
    # nginx refuses TRACE for every path and names no other methods; and to content in a bucket is one more step.
    if PROXIED and (response.request.method == "TRACE" or response.status_code == HTTPStatus.FOUND):
        return True
    if isinstance(failure, AcceptedNegativeData):
        # In a form everything is a text, so a number where a text belongs cannot be told from one.
        return case.media_type == "multipart/form-data" and "violates `type`" in failure.message
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        # The sandbox was told by another request to fail.
        return bool(response.json()["code"] == "provider_unavailable")
    if isinstance(failure, MissingHeaderNotRejected):
        # The webhook of a provider that is not in use: nothing is there to be signed.
        return bool(response.status_code == HTTPStatus.NOT_FOUND)
    if not isinstance(failure, RejectedPositiveData):
        return False
    body = response.json()
    # JSON Schema takes 10.0 for an integer, and the API does not.
    has_fraction = isinstance(case.body, dict) and any(isinstance(value, float) for value in case.body.values())
    allowed = BEYOND_THE_DOCUMENT | ({"invalid_type"} if has_fraction else set())
    errors = body.get("errors") or [{"code": body["code"], "pointer": ""}]
    return all(error["code"] in allowed or error["pointer"] in BEYOND_FORMATS for error in errors)


def load(caller: Account) -> Any:
    """Load the document and say how its operations are called."""
    schema = schemathesis.openapi.from_url(
        f"{caller.api.base_url}/openapi.json", config=SchemathesisConfig.from_dict(CONFIG)
    )
    leaver = log_in(caller.api, address("leaver"))

    @schema.auth(refresh_interval=None)
    class LiveTokens:
        """The caller's token, or that of a new session for what ends the session; called for each case."""

        def get(self, _case: Any, context: Any) -> str:
            operation = context.operation.definition.raw["operationId"]
            if operation not in LAST_CALLS:
                return caller.access_token
            leaving = log_in(caller.api, leaver.email)
            return leaving.refresh_token if operation == "refresh" else leaving.access_token

        def set(self, case: Any, token: str, _context: Any) -> None:
            case.headers = {**(case.headers or {}), "Authorization": f"Bearer {token}"}
            # Whoever is at work here must not be demoted, deactivated or erased by it.
            if case.method != "GET" and (case.path_parameters or {}).get("user_id") in {caller.id, leaver.id}:
                case.path_parameters["user_id"] = str(uuid4())

    @schema.hook
    def filter_failure(_context: Any, failure: Failure, case: Any, response: Any) -> bool:
        return not is_expected(failure, case, response)

    return schema


# Thousands of requests: a machine that does other things as well takes minutes.
@pytest.mark.timeout(600)
def test_every_answer_is_as_documented(caller: Account) -> None:
    run = Run()
    for event in from_schema(load(caller)).execute():
        run.note(event)
    assert run.failures == {}, "\n".join(run.failures.values())
    role = claims_of(caller.access_token)["role"]
    assert caller.api.get("/v1/users/me").json()["data"]["role"] == role
    # An administrator stood before no closed doors.
    admitted = {operation for operation, statuses in run.statuses.items() if statuses - {401, 403}}
    assert role != "admin" or admitted == set(run.statuses)
    assert run.calls > len(run.statuses) * EXAMPLES
