"""What we ask of Stripe through its official SDK, and how we read its answers. No object of the SDK leaves this module.

The sandbox is this same class over a transport that ends in the process.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import stripe

from project.payments.gateway_types import (
    BadSignature,
    Declined,
    DisputeSnapshot,
    Event,
    GatewayError,
    InOtherState,
    Intent,
    Misconfigured,
    NoSuchObject,
    OutcomeUnknown,
    PaymentSnapshot,
    RefundSnapshot,
    Rejected,
    TooManyRequests,
)
from project.payments.models import RefundReason
from project.payments.stripe_objects import dispute_snapshot, event, failure, payment_snapshot, refund_snapshot

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCaptureParams, PaymentIntentCreateParams, RefundCreateParams

# A call with its one retry must end before the server gives up the worker that waits for it.
CONNECT_SECONDS = 3
READ_SECONDS = 8
RETRIES = 1
TOLERANCE_SECONDS = 300
PAGE = 100
CLOCKS_DIFFER = timedelta(minutes=5)

_METHOD = "latest_charge"  # what was paid with is told by the charge
_STATES = {
    "capture_charge_authorization_expired",
    "charge_already_captured",
    "charge_already_refunded",
    "charge_disputed",
    "charge_expired_for_capture",
    "charge_not_refundable",
    "payment_intent_unexpected_state",
    "refund_disputed_payment",
}

# Else it would make an id for this machine, keep it in the home directory and send it with every request.
stripe.enable_telemetry = False
# At the level DEBUG it would write whole answers into our log, client secrets included.
logging.getLogger("stripe").setLevel(logging.WARNING)


def connect(secret_key: str) -> "StripeGateway":
    """Return the gateway of the Stripe account that the key belongs to; nothing is sent yet."""
    return StripeGateway(client_of(secret_key), livemode=secret_key.startswith(("sk_live_", "rk_live_")))


def client_of(secret_key: str) -> stripe.StripeClient:
    """Return the SDK's client of the account that the key belongs to."""
    transport = stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS))
    return stripe.StripeClient(secret_key, http_client=transport, max_network_retries=RETRIES)


class StripeGateway:
    """The verbs of a payment provider. Whatever changes something takes a key: asked twice with it, it is done once.

    Every method may raise OutcomeUnknown, TooManyRequests, Misconfigured and Rejected; those with a reference raise
    NoSuchObject. No transaction may be open.
    """

    def __init__(self, client: stripe.StripeClient, *, livemode: bool) -> None:
        self._client = client
        self.livemode = livemode

    def create_payment(self, intent: Intent, *, key: str) -> PaymentSnapshot:
        """Make a payment that the customer's browser can confirm."""
        params: PaymentIntentCreateParams = {
            "amount": intent.amount,
            "currency": intent.currency.lower(),
            "capture_method": intent.capture_method.value,
            "automatic_payment_methods": {"enabled": True},
            "metadata": {"payment_id": str(intent.payment_id)},
            "expand": [_METHOD],
        }
        if intent.description:
            params["description"] = intent.description
        with translated():
            made = self._client.v1.payment_intents.create(params, {"idempotency_key": key})
        return self._payment(made)

    def retrieve_payment(self, ref: str) -> PaymentSnapshot:
        """Return a payment as it is now."""
        with translated():
            found = self._client.v1.payment_intents.retrieve(ref, {"expand": [_METHOD]})
        return payment_snapshot(found.to_dict())

    def find_payment(self, payment_id: UUID, *, since: datetime) -> PaymentSnapshot | None:
        """Return the provider's counterpart of a payment of ours, if it was made after `since` by our clock.

        It goes through all of them: the provider's search lags behind by minutes.
        """
        found = self.list_payments(since=since - CLOCKS_DIFFER)
        return next((one for one in found if one.payment_id == payment_id), None)

    def list_payments(self, *, since: datetime) -> Iterator[PaymentSnapshot]:
        """Give the payments made after `since`, the newest first."""
        params = {"created": {"gte": int(since.timestamp())}, "expand": [f"data.{_METHOD}"]}
        return map(payment_snapshot, _pages(self._client.v1.payment_intents.list, params))

    def capture(self, ref: str, *, amount: int | None, key: str) -> PaymentSnapshot:
        """Take what was authorised, or only a part; the rest is released.

        Raises:
            Declined, InOtherState.
        """
        params: PaymentIntentCaptureParams = {"expand": [_METHOD]}
        if amount is not None:
            params["amount_to_capture"] = amount
        with translated():
            captured = self._client.v1.payment_intents.capture(ref, params, {"idempotency_key": key})
        return self._payment(captured)

    def cancel(self, ref: str, *, key: str) -> PaymentSnapshot:
        """Give a payment up; what was authorised is released.

        Raises:
            InOtherState.
        """
        with translated():
            canceled = self._client.v1.payment_intents.cancel(ref, {"expand": [_METHOD]}, {"idempotency_key": key})
        return self._payment(canceled)

    def create_refund(
        self, payment_ref: str, *, amount: int, reason: RefundReason | None, refund_id: UUID, key: str
    ) -> RefundSnapshot:
        """Give back a part of what was captured.

        Raises:
            InOtherState.
        """
        params: RefundCreateParams = {
            "payment_intent": payment_ref,
            "amount": amount,
            "metadata": {"refund_id": str(refund_id)},
        }
        # Stripe knows no other reasons than its own three.
        if reason is not None and reason is not RefundReason.OTHER:
            params["reason"] = reason.value
        with translated():
            made = self._client.v1.refunds.create(params, {"idempotency_key": key})
        return self.retrieve_refund(made.id) if _replayed(made) else refund_snapshot(made.to_dict())

    def retrieve_refund(self, ref: str) -> RefundSnapshot:
        """Return a refund as it is now."""
        with translated():
            found = self._client.v1.refunds.retrieve(ref)
        return refund_snapshot(found.to_dict())

    def list_refunds(self, payment_ref: str) -> Iterator[RefundSnapshot]:
        """Give the refunds of a payment, the newest first."""
        return map(refund_snapshot, _pages(self._client.v1.refunds.list, {"payment_intent": payment_ref}))

    def list_disputes(self, *, since: datetime) -> Iterator[DisputeSnapshot]:
        """Give the disputes made after `since`, the newest first."""
        params = {"created": {"gte": int(since.timestamp())}}
        return map(dispute_snapshot, _pages(self._client.v1.disputes.list, params))

    def retrieve_dispute(self, ref: str) -> DisputeSnapshot:
        """Return a dispute as it is now."""
        with translated():
            found = self._client.v1.disputes.retrieve(ref)
        return dispute_snapshot(found.to_dict())

    @staticmethod
    def parse_webhook(raw: bytes, header: str | None, *, secrets: Sequence[str], now: datetime) -> Event:
        """Return the event that a webhook carries, once its signature is known to be that of one of the secrets.

        Raises:
            BadSignature: also when it was signed more than five minutes ago or ahead, which the SDK would allow.
        """
        if header is None or not any(_signed(raw, header, secret) for secret in secrets):
            raise BadSignature("the signature is of none of our secrets")
        if abs(int(now.timestamp()) - _signed_at(header)) > TOLERANCE_SECONDS:
            raise BadSignature("the signature is too old, or of the future")
        try:
            return event(json.loads(raw))
        except (ValueError, KeyError, TypeError) as error:
            raise BadSignature("what was signed is no event") from error

    def _payment(self, answer: stripe.PaymentIntent) -> PaymentSnapshot:
        return self.retrieve_payment(answer.id) if _replayed(answer) else payment_snapshot(answer.to_dict())


def _replayed(answer: stripe.StripeObject) -> bool:
    """Tell whether an answer is one that was kept for its key: it tells what was then, and not what is now."""
    response = answer.last_response
    return response is not None and response.headers.get("Idempotent-Replayed") == "true"


def _pages(fetch: Callable[[Any], Any], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the objects of a list, a page at a time."""
    after: dict[str, str] = {}
    while True:
        with translated():
            page = fetch({**params, **after, "limit": PAGE}).to_dict()
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"starting_after": page["data"][-1]["id"]}


def _signed(raw: bytes, header: str, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(raw, header, secret))
    except (stripe.SignatureVerificationError, ValueError, TypeError):
        # ValueError: the body is not UTF-8. TypeError: the signature has letters beyond ASCII.
        return False


def _signed_at(header: str) -> int:
    """Return the time that a header which was verified says, read as the SDK reads it."""
    return int(next(item for item in header.split(",") if item.split("=")[0] == "t").split("=")[1])


@contextmanager
def translated() -> Iterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except stripe.StripeError as error:
        raise _ours(error) from error


def _ours(error: stripe.StripeError) -> GatewayError:
    if isinstance(error, stripe.CardError):
        return Declined(failure(_told(error)))
    if isinstance(error, stripe.InvalidRequestError | stripe.IdempotencyError):
        return _refused(error)
    if isinstance(error, stripe.RateLimitError):
        return TooManyRequests()
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return Misconfigured(error.code or type(error).__name__)
    # No connection, no answer in time, 5xx, or 409: another request with this key is under way.
    return OutcomeUnknown(type(error).__name__)


def _refused(error: stripe.StripeError) -> GatewayError:
    told = _told(error)
    code = told.get("code") or ("invalid_currency" if told.get("param") == "currency" else told.get("type"))
    if error.http_status == 404 or code == "resource_missing":
        return NoSuchObject(str(code))
    return InOtherState(str(code)) if code in _STATES else Rejected(str(code))


def _told(error: stripe.StripeError) -> dict[str, Any]:
    """Return what the provider says of an error; nothing when the SDK itself found our request wrong."""
    return error.json_body["error"] if isinstance(error.json_body, dict) else {"type": "invalid_request_error"}
