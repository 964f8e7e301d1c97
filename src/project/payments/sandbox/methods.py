"""The payment methods of Stripe's test mode that the sandbox knows, and what each does."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

# What a bank or a customer does later, it does after this.
DELAY = timedelta(seconds=5)


class Behaviour(StrEnum):
    """What confirming with a method leads to at once."""

    SUCCEED = "succeed"
    DECLINE = "decline"
    AUTHENTICATE = "authenticate"  # the customer has to approve it first
    PROCESS = "process"  # the bank answers later


class RefundBehaviour(StrEnum):
    """What becomes of a refund."""

    SUCCEED = "succeed"
    PEND = "pend"  # succeeds later
    FAIL = "fail"  # succeeds, and fails later


@dataclass(frozen=True)
class Decline:
    """Why a payment is refused, as the API tells it."""

    code: str
    decline_code: str | None
    message: str


@dataclass(frozen=True)
class TestMethod:
    """A payment method. A method that is processed is declined later if it has a `decline`, and never if it `hangs`."""

    __test__ = False  # no test, whatever its name begins with

    name: str
    description: str
    brand: str = "visa"
    last4: str = "4242"
    type: str = "card"
    behaviour: Behaviour = Behaviour.SUCCEED
    decline: Decline | None = None
    hangs: bool = False
    dispute: str | None = None  # the customer's reason
    inquiry: bool = False
    refund: RefundBehaviour = RefundBehaviour.SUCCEED

    @property
    def details(self) -> dict[str, Any]:
        """The `payment_method_details` of a charge."""
        shown = {"last4": self.last4} if self.type != "card" else {"brand": self.brand, "last4": self.last4}
        return {"type": self.type, self.type: shown}


def find_method(name: str) -> TestMethod | None:
    """Return the method of this name; the `visa_` that Stripe has in the names of some declines may be there or not."""
    spellings = (name, name.replace("_visa_charge", "_charge"), name.replace("_card_charge", "_card_visa_charge"))
    return next((METHODS[spelling] for spelling in spellings if spelling in METHODS), None)


def _declined(name: str, code: str, decline_code: str | None, message: str) -> TestMethod:
    told = f"Is declined: {decline_code or code}."
    decline = Decline(code, decline_code, message)
    return TestMethod(f"pm_card_{name}", told, last4="0002", behaviour=Behaviour.DECLINE, decline=decline)


def _bank(name: str, description: str, *, decline: Decline | None = None, hangs: bool = False) -> TestMethod:
    return TestMethod(
        f"pm_usBankAccount_{name}",
        description,
        type="us_bank_account",
        last4="6789",
        behaviour=Behaviour.PROCESS,
        decline=decline,
        hangs=hangs,
    )


AUTHENTICATION_FAILED = Decline(
    "payment_intent_authentication_failure",
    None,
    "The payment was not approved. Approve it, or pay in another way.",
)
_REFUSED = "Your card was declined."
_ALL = (
    TestMethod("pm_card_visa", "Succeeds."),
    TestMethod("pm_card_mastercard", "Succeeds.", brand="mastercard", last4="4444"),
    TestMethod("pm_card_amex", "Succeeds.", brand="amex", last4="8431"),
    _declined("visa_chargeDeclined", "card_declined", "generic_decline", _REFUSED),
    _declined(
        "visa_chargeDeclinedInsufficientFunds",
        "card_declined",
        "insufficient_funds",
        "There is not enough money on your card.",
    ),
    _declined("visa_chargeDeclinedLostCard", "card_declined", "lost_card", _REFUSED),
    _declined("visa_chargeDeclinedStolenCard", "card_declined", "stolen_card", _REFUSED),
    _declined(
        "visa_chargeDeclinedVelocityLimitExceeded",
        "card_declined",
        "card_velocity_exceeded",
        "Your card has reached its limit of payments or of money for now.",
    ),
    _declined("chargeDeclinedExpiredCard", "expired_card", None, "Your card has expired."),
    _declined("chargeDeclinedIncorrectCvc", "incorrect_cvc", None, "The security code of your card is wrong."),
    _declined(
        "chargeDeclinedProcessingError",
        "processing_error",
        None,
        "Something went wrong while your card was charged. Try again in a moment.",
    ),
    _declined("radarBlock", "card_declined", "fraudulent", _REFUSED),
    TestMethod(
        "pm_card_authenticationRequired",
        "Has to be approved by the customer first.",
        last4="3184",
        behaviour=Behaviour.AUTHENTICATE,
    ),
    _bank("success", "Is processed, and succeeds later."),
    _bank(
        "insufficientFunds",
        "Is processed, and is declined later.",
        decline=Decline("insufficient_funds", None, "There is not enough money in your account."),
    ),
    _bank("processing", "Is processed without end.", hangs=True),
    TestMethod("pm_card_createDispute", "Succeeds, and is disputed as fraudulent later.", dispute="fraudulent"),
    TestMethod(
        "pm_card_createDisputeProductNotReceived",
        "Succeeds, and is disputed later: nothing arrived.",
        dispute="product_not_received",
    ),
    TestMethod(
        "pm_card_createDisputeInquiry",
        "Succeeds, and the bank asks about it later.",
        dispute="fraudulent",
        inquiry=True,
    ),
    TestMethod(
        "pm_card_pendingRefund", "Succeeds; refunds are pending, and succeed later.", refund=RefundBehaviour.PEND
    ),
    TestMethod("pm_card_refundFail", "Succeeds; refunds succeed, and fail later.", refund=RefundBehaviour.FAIL),
)
METHODS = {method.name: method for method in _ALL}
