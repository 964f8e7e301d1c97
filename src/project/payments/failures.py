"""What clients are told when a provider refuses or fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from project.errors import AppError, Conflict, InternalError, Invalid, Unavailable
from project.payments.gateway_types import (
    Declined,
    GatewayError,
    InOtherState,
    Misconfigured,
    OutcomeUnknown,
    Rejected,
    TooManyRequests,
)
from project.payments.prices import INVALID_AMOUNT

logger = logging.getLogger(__name__)

# The provider's codes for amounts that it does not take, whatever our price says.
_AMOUNT_CODES = {"amount_too_small", "amount_too_large", "invalid_currency"}


class ProviderUnavailable(Unavailable):
    """503: the provider did not answer, or not in a way that tells what it did."""

    code = "provider_unavailable"
    message = "The payment provider does not answer right now."
    cure = "Repeat the request with the same Idempotency-Key after the seconds in Retry-After; nothing happens twice."


class ProviderRejected(AppError):
    """502: the provider refused our request; a fault of ours or of the set-up."""

    status = HTTPStatus.BAD_GATEWAY
    code = "provider_rejected"
    message = "The payment provider refused the request."
    cure = "Report the request_id."


class PaymentsMisconfigured(InternalError):
    """500: the provider does not accept our keys."""

    code = "payments_misconfigured"
    message = "Payments are not set up correctly."
    cure = "Report the request_id; the operator has to look at the keys of the provider."


class PaymentDeclined(AppError):
    """402: the bank or the provider's checks said no."""

    status = HTTPStatus.PAYMENT_REQUIRED
    code = "payment_declined"
    message = "The payment was declined."
    cure = "Show the detail to the customer and let them choose another way to pay."


class InvalidState(Conflict):
    """409: the payment's state forbids it, or another operation on it is under way."""

    code = "invalid_state"
    message = "The payment's state does not allow this."
    cure = "Read the payment again: its status, `pending_operation` and amounts say what is possible."


@contextmanager
def told() -> Iterator[None]:
    """Tell clients in our words what the provider refuses in the block.

    Raises:
        AppError: see `refusal`.
    """
    try:
        yield
    except GatewayError as error:
        raise refusal(error) from error


def refusal(error: GatewayError, *, too_much: str = INVALID_AMOUNT) -> AppError:
    """Return what a client is told of a provider's refusal or failure; `too_much` is the code for a wrong amount."""
    match error:
        case Declined():
            return PaymentDeclined(error.failure.message, decline_code=error.failure.decline_code)
        case Rejected() if error.code in _AMOUNT_CODES:
            return Invalid.field("/amount", too_much, "The payment provider does not take this amount.")
        case InOtherState():
            return InvalidState()
        case OutcomeUnknown() | TooManyRequests():
            return ProviderUnavailable()
    logger.error("provider_refused", extra={"error": type(error).__name__, "code": str(error)})
    return PaymentsMisconfigured() if isinstance(error, Misconfigured) else ProviderRejected()
