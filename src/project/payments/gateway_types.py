"""What a payment provider tells us, in our words, and the ways in which it can refuse."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from project.payments.models import CaptureMethod, PaymentStatus, RefundStatus

# The provider forgets keys after a day: until then the same request can be sent again, and nothing is done twice.
KEYS_LIVE = timedelta(hours=23)


@dataclass(frozen=True)
class Intent:
    """What a payment is to be. `payment_id` goes along as metadata, so that the provider's object leads back to us."""

    payment_id: UUID
    amount: int
    currency: str
    capture_method: CaptureMethod
    description: str | None


@dataclass(frozen=True)
class Failure:
    """Why the last attempt to pay failed; `message` may be shown to the customer."""

    code: str
    decline_code: str | None
    message: str


@dataclass(frozen=True)
class Method:
    """What was paid with, as far as it may be shown."""

    type: str
    brand: str | None
    last4: str | None


@dataclass(frozen=True)
class PaymentSnapshot:
    """A payment as the provider has it at this moment."""

    ref: str
    payment_id: UUID | None  # None: not made by us
    status: PaymentStatus
    amount: int
    currency: str  # upper case
    amount_capturable: int
    amount_received: int
    amount_refunded: int  # with what is pending
    livemode: bool
    client_secret: str | None
    method: Method | None
    failure: Failure | None


@dataclass(frozen=True)
class RefundSnapshot:
    """A refund as the provider has it at this moment."""

    ref: str
    refund_id: UUID | None  # None: made at the provider
    payment_ref: str
    status: RefundStatus
    amount: int
    currency: str
    failure_reason: str | None


@dataclass(frozen=True)
class DisputeSnapshot:
    """A dispute as the provider has it at this moment. What was taken and given back is in the payment's currency."""

    ref: str
    payment_ref: str
    status: str
    reason: str
    amount: int
    currency: str
    livemode: bool
    withdrawn: int
    reinstated: int
    fee: int
    evidence_due_by: datetime | None


@dataclass(frozen=True)
class Event:
    """A verified webhook event: which object of the provider has changed.

    Of a charge, `object_ref` is the payment it belongs to: the provider's charges are nothing of their own to us.
    """

    id: str
    type: str
    livemode: bool
    object_type: str
    object_ref: str


class GatewayError(Exception):
    """Base of what a provider refuses or fails with."""


class Declined(GatewayError):
    """The bank or the provider's own checks said no to this payment method."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class Rejected(GatewayError):
    """Our request was wrong; `code` is the provider's, such as amount_too_small."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class InOtherState(GatewayError):
    """The object is in a state that does not allow this; look at it again."""


class NoSuchObject(GatewayError):
    """The provider has no such object."""


class OutcomeUnknown(GatewayError):
    """No answer, or none that says whether it was done: ask again with the same key, or look."""


class TooManyRequests(GatewayError):
    """Nothing was done; come back later."""


class Misconfigured(GatewayError):
    """The provider does not accept our key."""


class BadSignature(GatewayError):
    """A webhook that nobody with one of our secrets has signed within the last minutes, or that is no event."""
