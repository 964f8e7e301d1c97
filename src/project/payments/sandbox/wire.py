"""The part of Stripe's API that the product uses: which calls there are, and which parameters they take."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from project.payments.sandbox import disputes, intents, keys, refunds
from project.payments.sandbox.errors import Answer, WireError
from project.payments.sandbox.parameters import Shape, boolean, integer, list_of, metadata, nested, one_of, read, text

API_KEY = "sk_sandbox"

_EXPAND: Shape = {"expand": list_of("latest_charge")}
_PAGE: Shape = {"limit": integer, "starting_after": text}


@dataclass(frozen=True)
class Route:
    """A call: what it is asked by, what it takes and who answers it; the handler gets the ids in the path first."""

    method: str
    path: str
    handler: Callable[..., dict[str, Any]]
    shape: Shape
    required: tuple[str, ...] = ()


ROUTES = (
    Route(
        "post",
        "/v1/payment_intents",
        intents.create,
        {
            "amount": integer,
            "automatic_payment_methods": nested(
                {"enabled": boolean, "allow_redirects": one_of("always", "never")},
            ),
            "capture_method": one_of("automatic", "automatic_async", "manual"),
            "currency": text,
            "description": text,
            "metadata": metadata,
            **_EXPAND,
        },
        required=("amount", "currency"),
    ),
    Route(
        "get",
        "/v1/payment_intents",
        intents.list_all,
        {"created": nested({"gte": integer}), "expand": list_of("data.latest_charge"), **_PAGE},
    ),
    Route("get", "/v1/payment_intents/([^/]+)", intents.retrieve, _EXPAND),
    Route("post", "/v1/payment_intents/([^/]+)/capture", intents.capture, {"amount_to_capture": integer, **_EXPAND}),
    Route(
        "post",
        "/v1/payment_intents/([^/]+)/cancel",
        intents.cancel,
        {
            "cancellation_reason": one_of("abandoned", "duplicate", "fraudulent", "requested_by_customer"),
            **_EXPAND,
        },
    ),
    Route(
        "post",
        "/v1/refunds",
        refunds.create,
        {
            "amount": integer,
            "metadata": metadata,
            "payment_intent": text,
            "reason": one_of("duplicate", "fraudulent", "requested_by_customer"),
        },
        required=("payment_intent",),
    ),
    Route("get", "/v1/refunds", refunds.list_all, {"payment_intent": text, **_PAGE}),
    Route("get", "/v1/refunds/([^/]+)", refunds.retrieve, {}),
    Route("get", "/v1/disputes", disputes.list_all, {"created": nested({"gte": integer}), **_PAGE}),
    Route("get", "/v1/disputes/([^/]+)", disputes.retrieve, {}),
)


def answer(method: str, url: str, headers: Mapping[str, str], form: str) -> Answer:
    """Answer a call of the SDK."""
    parts = urlsplit(url)
    try:
        _authenticate(headers)
        route, refs = _find(method, parts.path)
        params = read(form if method == "post" else parts.query, route.shape, required=route.required)
        if method == "get":
            return Answer.of(route.handler(*refs, params))
        fingerprint = hashlib.sha256(f"{parts.path}\n{form}".encode()).hexdigest()
        return keys.once(headers["Idempotency-Key"], fingerprint, lambda: route.handler(*refs, params))
    except WireError as refusal:
        return refusal.answer


def _authenticate(headers: Mapping[str, str]) -> None:
    if headers.get("Authorization") != f"Bearer {API_KEY}":
        raise WireError("Invalid API Key provided.", status=401)


def _find(method: str, path: str) -> tuple[Route, tuple[str, ...]]:
    for route in ROUTES:
        found = re.fullmatch(route.path, path) if route.method == method else None
        if found:
            return route, found.groups()
    raise WireError(f"Unrecognized request URL ({method.upper()}: {path}).", status=404)
