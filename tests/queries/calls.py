"""How to call each route so that it succeeds; what has to be there for it is made before.

A new route fails its tests until it has a line in CALLS.
"""

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any
from uuid import uuid4

import requests
from flask import Flask

from project.payments.sandbox.delivery import signing_secret
from tests.factories import PASSWORD
from tests.files.asking import relative
from tests.payments import asking, paying
from tests.queries.scene import PNG, Call, Scene, described

PLACE, NAME = re.compile(r"<(?:[a-z]+:)?(\w+)>"), r"{\1}"
THREE_D_SECURE = "pm_card_authenticationRequired"


def _at(path: str, caller: Mapping[str, str] | None = None, **options: Any) -> Call:
    return {"path": path, "headers": {**(caller or {})}, **options}


def _new_address() -> str:
    return f"{uuid4()}@example.com"


def _verify(scene: Scene) -> Call:
    token = scene.asked("/v1/auth/register", email=_new_address(), password=PASSWORD)
    return _at("/v1/auth/verify-email", json={"token": token})


def _reset(scene: Scene) -> Call:
    token = scene.asked("/v1/auth/forgot-password", email=scene.user.user.email)
    return _at("/v1/auth/reset-password", json={"token": token, "password": PASSWORD})


def _confirm_email(scene: Scene) -> Call:
    body = {"new_email": _new_address(), "password": PASSWORD}
    token = scene.asked("/v1/auth/change-email", headers=scene.user, **body)
    return _at("/v1/auth/confirm-email", json={"token": token})


def _complete(scene: Scene) -> Call:
    begun = scene.direct()
    permission = begun["upload"]
    requests.put(permission["url"], headers=permission["headers"], data=PNG, timeout=10).raise_for_status()
    return _at(f"/v1/files/{begun['file']['id']}/complete", scene.user)


def _direct(scene: Scene) -> Call:
    scene.fixture("bucket")
    return _at("/v1/files/direct", scene.user, json=described())


def _invite(scene: Scene) -> Call:
    body = {"email": _new_address(), "role": "user"}
    made = asking.data(scene.client.post("/v1/users", json=body, headers=scene.admin))
    return _at(f"/v1/users/{made['id']}/invitation", scene.admin)


def _webhook_of_stripe(scene: Scene) -> Call:
    call = scene.webhook()
    secret = scene.in_app(signing_secret)
    scene.fixture("set_payments")(provider="stripe", secret_key="sk_test_1", webhook_secrets=[secret])
    return {"path": "/v1/payments/webhooks/stripe", **call}


def _page(scene: Scene) -> Call:
    path, secret = scene.intent(THREE_D_SECURE)
    return _at(f"{path}/authenticate?client_secret={secret}")


def _approve(scene: Scene) -> Call:
    path, secret = scene.intent(THREE_D_SECURE)
    return _at(f"{path}/authenticate", json={"client_secret": secret, "outcome": "approve"})


def _confirm(scene: Scene) -> Call:
    path, secret = scene.intent()
    return _at(f"{path}/confirm", json={"client_secret": secret, "payment_method": paying.VISA})


def _upload(scene: Scene) -> Call:
    return _at("/v1/files", scene.user, data={"file": (BytesIO(PNG), "red.png", "image/png")})


def _id(scene: Scene) -> str:
    return str(scene.user.user.id)


def _anonymous(path: str) -> Callable[[Scene], Call]:
    return lambda _: _at(path)


def _as_user(path: str) -> Callable[[Scene], Call]:
    return lambda scene: _at(path, scene.user)


def _as_staff(path: str) -> Callable[[Scene], Call]:
    return lambda scene: _at(path, scene.staff)


NEW_PRICE = {"name": "Lesson", "currency": "USD", "unit_amount": 1250}

CALLS: dict[str, Callable[[Scene], Call]] = {
    "GET /": _anonymous("/"),
    "GET /docs": _anonymous("/docs"),
    "GET /docs/assets/{name}": _anonymous("/docs/assets/swagger-ui.css"),
    "GET /errors": _anonymous("/errors"),
    "GET /healthz": _anonymous("/healthz"),
    "GET /metrics": _anonymous("/metrics"),
    "GET /openapi.json": _anonymous("/openapi.json"),
    "GET /readyz": _anonymous("/readyz"),
    # accounts
    "POST /v1/auth/register": lambda _: _at("/v1/auth/register", json={"email": _new_address(), "password": PASSWORD}),
    "POST /v1/auth/verify-email": _verify,
    "POST /v1/auth/resend-verification": lambda _: _at("/v1/auth/resend-verification", json={"email": _new_address()}),
    "POST /v1/auth/login": lambda scene: _at(
        "/v1/auth/login", json={"email": scene.user.user.email, "password": PASSWORD}
    ),
    "POST /v1/auth/refresh": lambda scene: _at("/v1/auth/refresh", scene.user.refreshing),
    "POST /v1/auth/logout": _as_user("/v1/auth/logout"),
    "GET /v1/auth/sessions": _as_user("/v1/auth/sessions"),
    "DELETE /v1/auth/sessions": _as_user("/v1/auth/sessions"),
    "DELETE /v1/auth/sessions/{session_id}": lambda scene: _at(f"/v1/auth/sessions/{scene.session_id()}", scene.user),
    "POST /v1/auth/forgot-password": lambda _: _at("/v1/auth/forgot-password", json={"email": _new_address()}),
    "POST /v1/auth/reset-password": _reset,
    "POST /v1/auth/change-password": lambda scene: _at(
        "/v1/auth/change-password", scene.user, json={"current_password": PASSWORD, "new_password": PASSWORD}
    ),
    "POST /v1/auth/change-email": lambda scene: _at(
        "/v1/auth/change-email", scene.user, json={"new_email": _new_address(), "password": PASSWORD}
    ),
    "POST /v1/auth/confirm-email": _confirm_email,
    "GET /v1/users/me": _as_user("/v1/users/me"),
    "PATCH /v1/users/me": lambda scene: _at("/v1/users/me", scene.user, json={"name": "Ann"}),
    "POST /v1/users/me/erase": lambda scene: _at("/v1/users/me/erase", scene.user, json={"password": PASSWORD}),
    "GET /v1/users": _as_staff("/v1/users"),
    "POST /v1/users": lambda scene: _at("/v1/users", scene.admin, json={"email": _new_address(), "role": "user"}),
    "GET /v1/users/{user_id}": lambda scene: _at(f"/v1/users/{_id(scene)}", scene.staff),
    "PATCH /v1/users/{user_id}": lambda scene: _at(f"/v1/users/{_id(scene)}", scene.admin, json={"name": "Ann"}),
    "DELETE /v1/users/{user_id}": lambda scene: _at(f"/v1/users/{_id(scene)}", scene.admin),
    "DELETE /v1/users/{user_id}/sessions": lambda scene: _at(f"/v1/users/{_id(scene)}/sessions", scene.admin),
    "POST /v1/users/{user_id}/invitation": _invite,
    "GET /v1/audit-events": lambda scene: _at("/v1/audit-events", scene.admin),
    # files
    "GET /v1/files/config": _as_user("/v1/files/config"),
    "GET /v1/files/usage": _as_user("/v1/files/usage"),
    "GET /v1/files/quotas/{user_id}": lambda scene: _at(f"/v1/files/quotas/{_id(scene)}", scene.admin),
    "PUT /v1/files/quotas/{user_id}": lambda scene: _at(
        f"/v1/files/quotas/{_id(scene)}", scene.admin, json={"quota": 1000}
    ),
    "POST /v1/files": _upload,
    "POST /v1/files/raw": lambda scene: _at("/v1/files/raw", scene.user, data=PNG, content_type="image/png"),
    "POST /v1/files/direct": _direct,
    "POST /v1/files/{file_id}/complete": _complete,
    "GET /v1/files": _as_user("/v1/files"),
    "GET /v1/files/{file_id}": lambda scene: _at(scene.file(), scene.user),
    "PATCH /v1/files/{file_id}": lambda scene: _at(scene.file(), scene.user, json={"visibility": "public"}),
    "DELETE /v1/files/{file_id}": lambda scene: _at(scene.file(), scene.user),
    "GET /v1/files/{file_id}/content": lambda scene: _at(f"{scene.file()}/content", scene.user),
    "GET /v1/files/{file_id}/thumbnail": lambda scene: _at(f"{scene.file()}/thumbnail", scene.user),
    "POST /v1/files/{file_id}/signed-url": lambda scene: _at(f"{scene.file()}/signed-url", scene.user, json={}),
    "POST /v1/files/{file_id}/shares": lambda scene: _at(f"{scene.file()}/shares", scene.user, json={}),
    "GET /v1/files/{file_id}/shares": lambda scene: _at(f"{scene.file()}/shares", scene.user),
    "DELETE /v1/files/{file_id}/shares/{share_id}": lambda scene: _at(scene.share()["path"], scene.user),
    "GET /v1/shares/{token}": lambda scene: _at(relative(scene.share()["url"])),
    # payments
    "GET /v1/prices": _anonymous("/v1/prices"),
    "POST /v1/prices": lambda scene: _at("/v1/prices", scene.admin, json=NEW_PRICE),
    "GET /v1/prices/{price_id}": lambda scene: _at(f"/v1/prices/{scene.price()}"),
    "PATCH /v1/prices/{price_id}": lambda scene: _at(
        f"/v1/prices/{scene.price()}", scene.admin, json={"active": False}
    ),
    "GET /v1/payments/config": _as_user("/v1/payments/config"),
    "POST /v1/payments": lambda scene: _at("/v1/payments", scene.user | asking.key(), json={"price_id": scene.price()}),
    "GET /v1/payments": _as_user("/v1/payments"),
    "GET /v1/payments/{payment_id}": lambda scene: _at(scene.paid(), scene.user),
    "GET /v1/payments/{payment_id}/client-secret": lambda scene: _at(
        f"/v1/payments/{scene.payment()['id']}/client-secret", scene.user
    ),
    "POST /v1/payments/{payment_id}/cancel": lambda scene: _at(
        f"/v1/payments/{scene.payment()['id']}/cancel", scene.user | asking.key(), json={}
    ),
    "POST /v1/payments/{payment_id}/capture": lambda scene: _at(
        f"{scene.paid(capture_method='manual')}/capture", scene.staff | asking.key(), json={}
    ),
    "POST /v1/payments/{payment_id}/refunds": lambda scene: _at(
        f"{scene.paid()}/refunds", scene.staff | asking.key(), json={"amount": 1}
    ),
    "GET /v1/payments/{payment_id}/refunds": lambda scene: _at(f"{scene.paid()}/refunds", scene.user),
    "GET /v1/payments/{payment_id}/receipt": lambda scene: _at(f"{scene.paid()}/receipt", scene.user),
    "GET /v1/payments/{payment_id}/timeline": lambda scene: _at(f"{scene.paid()}/timeline", scene.staff),
    "GET /v1/payments/disputes": _as_staff("/v1/payments/disputes"),
    "GET /v1/payments/events": _as_staff("/v1/payments/events"),
    "POST /v1/payments/events/{event_id}/retry": lambda scene: _at(f"{scene.failed_event()}/retry", scene.staff),
    "POST /v1/payments/webhooks/sandbox": lambda scene: {"path": "/v1/payments/webhooks/sandbox", **scene.webhook()},
    "POST /v1/payments/webhooks/stripe": _webhook_of_stripe,
    "GET /v1/ledger/entries": _as_staff("/v1/ledger/entries"),
    "GET /v1/ledger/balances": _as_staff("/v1/ledger/balances"),
    "GET /v1/ledger/export.csv": _as_staff("/v1/ledger/export.csv"),
    "GET /v1/sandbox/payment-methods": _anonymous("/v1/sandbox/payment-methods"),
    "POST /v1/sandbox/payment-intents/{ref}/confirm": _confirm,
    "GET /v1/sandbox/payment-intents/{ref}/authenticate": _page,
    "POST /v1/sandbox/payment-intents/{ref}/authenticate": _approve,
    "POST /v1/sandbox/faults": lambda scene: _at(
        "/v1/sandbox/faults", scene.admin, json={"fault": "http_500", "count": 0}
    ),
    "POST /v1/sandbox/advance": lambda scene: _at("/v1/sandbox/advance", scene.admin),
}


def routes_of(app: Flask) -> set[str]:
    """Return the routes of an application, written as in CALLS."""
    methods = {"GET", "POST", "PUT", "PATCH", "DELETE"}
    return {
        f"{method} {PLACE.sub(NAME, rule.rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) & methods
    }
