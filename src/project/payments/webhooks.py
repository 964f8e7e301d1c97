"""The frame of the webhook routes: the raw body, its bound, and its signature before anything else is believed."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import request

from project import metrics
from project.config import settings
from project.database import utcnow
from project.errors import BadRequest, NotFound
from project.json import read_body
from project.marks import mark
from project.payments.gateway import current_gateway
from project.payments.gateway_types import BadSignature
from project.payments.sandbox.delivery import signing_secret

logger = logging.getLogger(__name__)


class InvalidSignature(BadRequest):
    """400: nobody who has the secret has signed this body within the last five minutes."""

    code = "invalid_signature"
    message = "The signature does not fit the body, the secret or the time."
    cure = "Sign the raw body with the endpoint's secret, and send it within five minutes."


def signed(provider: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give the route the verified event of a webhook and its payload. Stands below `public`.

    Raises:
        NotFound: the provider is not the one of the settings. PayloadTooLarge: over 256 KiB.
        InvalidSignature: it is missing, old, of the future, of another secret or of another body.
    """

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def wrapper() -> Any:
            if settings.payments.provider != provider:
                raise NotFound()
            raw = read_body(request)
            try:
                event = current_gateway().parse_webhook(
                    raw, request.headers.get("Stripe-Signature"), secrets=_secrets(), now=utcnow()
                )
            except BadSignature as error:
                metrics.WEBHOOKS.labels("invalid_signature").inc()
                # Mostly it is a secret that somebody has set wrong, who looks here.
                logger.warning("webhook_refused", extra={"reason": str(error)})
                raise InvalidSignature() from error
            return view(event=event, payload=raw.decode())

        return mark(wrapper, raw_body=True, signed=True, body_errors=[InvalidSignature])

    return decorate


def _secrets() -> list[str]:
    return settings.payments.webhook_secrets or [signing_secret()]
