"""An application in which each route can be called: who calls, and what they call it on."""

import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from io import BytesIO
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from werkzeug.test import TestResponse

from project.database import db, transaction
from project.mail import Message
from project.payments.journal import EventStatus, WebhookEvent
from project.payments.sandbox.delivery import signing_secret
from project.payments.sandbox.models import SandboxEvent
from project.security import Role
from tests.conftest import Caller
from tests.files.samples import picture
from tests.payments import asking, paying
from tests.queries.counting import Sent, watched

# What the test client is told of a request, but for the method: the path, headers, a body.
Call = dict[str, Any]
TOKEN = re.compile(r"#token=([\w-]+)")
PNG = picture("PNG")


@dataclass
class Scene:
    """An application, and what it takes to call it."""

    app: Flask
    client: FlaskClient
    as_user: Callable[..., Caller]
    in_app: Callable[..., Any]
    run_jobs: Callable[[], int]
    outbox: list[Message]
    fixture: Callable[[str], Any]
    callers: dict[Role, Caller] = field(default_factory=dict)

    def caller(self, role: Role = Role.USER) -> Caller:
        """Somebody of this role, always the same."""
        if role not in self.callers:
            self.callers[role] = self.as_user(role=role)
        return self.callers[role]

    @property
    def user(self) -> Caller:
        """Somebody."""
        return self.caller()

    @property
    def staff(self) -> Caller:
        """Somebody of the staff."""
        return self.caller(Role.STAFF)

    @property
    def admin(self) -> Caller:
        """An administrator."""
        return self.caller(Role.ADMIN)

    def send(self, route: str, call: Call) -> TestResponse:
        """Call a route, and take all of the answer."""
        method, _, _ = route.partition(" ")
        answer = self.client.open(method=method, buffered=True, **call)
        assert answer.status_code < HTTPStatus.BAD_REQUEST, answer.get_data(as_text=True)
        return answer

    def watch(self, route: str, call: Call) -> tuple[Any, Sent]:
        """Call a route, and see what it sends to the database."""
        with self.app.app_context():
            engine = db.engine
        with watched(engine) as sent:
            answer = self.send(route, call)
        return answer, sent

    def asked(self, path: str, **body: Any) -> str:
        """Ask for a mail with a link, and return the token in it."""
        headers = body.pop("headers", {})
        assert self.client.post(path, json=body, headers=headers).status_code in {201, 202}
        self.run_jobs()
        texts = [found[1] for message in self.outbox if (found := TOKEN.search(message.text))]
        return texts[-1]

    def session_id(self) -> str:
        """The id of a session of the user's."""
        found = asking.data(self.client.get("/v1/auth/sessions", headers=self.user))
        return str(found[0]["id"])

    def file(self) -> str:
        """The path of a new file of the user's."""
        body = {"file": (BytesIO(PNG), "red.png", "image/png")}
        answer = self.client.post("/v1/files", headers=self.user, data=body)
        return f"/v1/files/{asking.data(answer)['id']}"

    def direct(self) -> dict[str, Any]:
        """An upload straight into a bucket that has begun."""
        self.fixture("bucket")
        answer = self.client.post("/v1/files/direct", headers=self.user, json=described())
        return dict(asking.data(answer))

    def share(self) -> dict[str, Any]:
        """A new link to a new file."""
        path = self.file()
        made = asking.data(self.client.post(f"{path}/shares", json={}, headers=self.user))
        return {**made, "path": f"{path}/shares/{made['id']}"}

    def price(self) -> str:
        """A new price."""
        return str(self.in_app(paying.make_price).id)

    def payment(self, **body: Any) -> dict[str, Any]:
        """A new payment of the user's, with its client secret."""
        return dict(asking.buy(self.client, self.user, self.price(), **body))

    def paid(self, **body: Any) -> str:
        """The path of a payment that was paid, or authorised."""
        return f"/v1/payments/{asking.purchase(self.client, self.user, self.price(), **body)['id']}"

    def intent(self, method: str = "") -> tuple[str, str]:
        """The path of a payment at the provider and its secret; confirmed with a method if one is named."""
        made = self.payment()
        if method:
            asking.confirm(self.client, made, method)
        secret = str(made["client_secret"])
        return f"/v1/sandbox/payment-intents/{secret.partition('_secret_')[0]}", secret

    def failed_event(self) -> str:
        """The path of a webhook event that could not be acted on."""
        self.paid()
        self.run_jobs()

        def spoil() -> object:
            newest = select(WebhookEvent.id).order_by(WebhookEvent.id.desc()).limit(1).scalar_subquery()
            spoilt = update(WebhookEvent).where(WebhookEvent.id == newest).values(status=EventStatus.FAILED)
            with transaction():
                return db.session.scalar(spoilt.returning(WebhookEvent.id))

        return f"/v1/payments/events/{self.in_app(spoil)}"

    def webhook(self) -> Call:
        """A webhook that was not received yet."""
        self.payment()
        body, secret = self.in_app(lambda: (_payload(), signing_secret()))
        now = int(time.time())
        signature = hmac.new(secret.encode(), f"{now}.".encode() + body, "sha256").hexdigest()
        headers = {"Stripe-Signature": f"t={now},v1={signature}"}
        return {"data": body, "content_type": "application/json", "headers": headers}


def _payload() -> bytes:
    newest = select(SandboxEvent.payload).order_by(SandboxEvent.id.desc()).limit(1)
    return db.session.scalars(newest).one().encode()


def described() -> dict[str, Any]:
    """What a client says of a file that it will put into a bucket."""
    return {"filename": "a.png", "size": len(PNG), "content_type": "image/png", "sha256": sha256(PNG).hexdigest()}
