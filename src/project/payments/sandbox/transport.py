"""The transport that makes Stripe's SDK talk to the sandbox: no socket, all of it in the process."""

from collections.abc import Mapping
from typing import Any

import stripe

from project.database import give_back
from project.payments.sandbox import wire
from project.payments.sandbox.errors import WireError
from project.payments.sandbox.faults import CALL_FAULTS, Fault, take
from project.payments.stripe_gateway import RETRIES, StripeGateway

# It asks the SDK not to try again, which it would do with a 500.
_FINAL = {"stripe-should-retry": "false"}
_REFUSALS = {
    Fault.HTTP_500: WireError("Something went wrong at the gateway.", status=500, kind="api_error").answer,
    Fault.RATE_LIMIT: WireError("Too many requests hit the API too quickly.", status=429, code="rate_limit").answer,
}


def connect() -> StripeGateway:
    """Return the gateway of the sandbox."""
    client = stripe.StripeClient(wire.API_KEY, http_client=SandboxTransport(), max_network_retries=RETRIES)
    return StripeGateway(client, livemode=False)


class SandboxTransport(stripe.HTTPClient):
    """Answers the SDK's requests from the sandbox's tables, in transactions of their own."""

    name = "sandbox"

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, Mapping[str, str]]:
        """Answer a request.

        Raises:
            RuntimeError: a transaction is open, which a real provider would not end either.
            stripe.APIConnectionError: there is no answer, because that was asked for (faults.py).
        """
        give_back()
        taken = take(CALL_FAULTS) if method == "post" else None
        fault = taken[0] if taken else None
        if fault in _REFUSALS:
            return _REFUSALS[fault].body, _REFUSALS[fault].status, _FINAL
        if fault is Fault.TIMEOUT_BEFORE:
            raise _timeout()
        answer = wire.answer(method, url, headers or {}, post_data or "")
        give_back()
        if fault is Fault.TIMEOUT_AFTER:
            raise _timeout()
        return answer.body, answer.status, {"Idempotent-Replayed": "true"} if answer.replayed else {}

    def close(self) -> None:
        """Close nothing: there are no connections."""


def _timeout() -> stripe.APIConnectionError:
    message = "The sandbox was asked not to answer in time."
    return stripe.APIConnectionError(message, should_retry=False)  # type: ignore[no-untyped-call]
