"""HTTP for payments: making, watching, canceling, capturing and refunding them, and the provider's webhooks."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from project.blueprint import Blueprint
from project.config import settings
from project.errors import Forbidden, NotFound, RateLimited
from project.idempotency import Secret, idempotent
from project.limits import limit
from project.list_queries import whose
from project.pagination import Page
from project.payments import inbox, operations, receipt_page, receipts, refunds, service, webhooks
from project.payments.failures import (
    InvalidState,
    PaymentDeclined,
    PaymentsMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from project.payments.models import Payment, Refund
from project.payments.operations import AMOUNT_EXCEEDS_CAPTURABLE
from project.payments.prices import INVALID_AMOUNT, PRICE_INACTIVE
from project.payments.receipts import NotPaid
from project.payments.refunds import REFUND_EXCEEDS_AVAILABLE, PaymentDisputed
from project.payments.schemas import (
    Cancel,
    Capture,
    ClientSecretOut,
    NewPaymentOut,
    PaymentCreate,
    PaymentOut,
    PaymentQuery,
    PaymentsConfigOut,
    ReceiptOut,
    RefundCreate,
    RefundOut,
    RefundQuery,
    SyncQuery,
)
from project.payments.service import PaymentExists, PaymentFinal
from project.payments.staff_schemas import ReceivedOut
from project.security import Role, login_required, principal, public, role_required

blueprint = Blueprint("payments", __name__, url_prefix="/payments", description="One's own payments, and all for staff")

PROVIDER_ERRORS = (ProviderRejected, ProviderUnavailable, PaymentsMisconfigured)


@blueprint.get("/config")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, PaymentsConfigOut)
def get_payments_config() -> object:
    """Show which provider a browser confirms payments with, and its publishable key."""
    return settings.payments


@blueprint.post("")
@limit("write")
@login_required
@idempotent(resume=service.resume_payment, required=True, secret=Secret("client_secret", service.fetch_client_secret))
@blueprint.arguments(PaymentCreate)
@blueprint.response(HTTPStatus.CREATED, NewPaymentOut, location="/v1/payments/{0.id}")
@blueprint.raises(NotFound, PaymentExists, *PROVIDER_ERRORS, fields=(INVALID_AMOUNT, PRICE_INACTIVE))
def create_payment(data: dict[str, Any], resumed: Payment | None) -> Payment:
    """Make a payment at a price. The browser confirms it with `client_secret`, which is never stored or logged."""
    return resumed or service.create_payment(user_id=principal().id, **data)


@blueprint.get("")
@limit("read")
@login_required
@blueprint.arguments(PaymentQuery, location="query")
@blueprint.response(HTTPStatus.OK, PaymentOut(many=True))
@blueprint.raises(Forbidden)
def list_payments(query: dict[str, Any]) -> Page[Payment]:
    """List one's own payments; staff see those of others with `scope` or `user_id`."""
    return service.list_payments(caller_id=principal().id, user_id=whose(principal(), query), **query)


@blueprint.get("/<uuid:payment_id>")
@limit("read")
@login_required
@blueprint.arguments(SyncQuery, location="query")
@blueprint.response(HTTPStatus.OK, PaymentOut)
@blueprint.raises(NotFound, RateLimited, *PROVIDER_ERRORS)
def get_payment(query: dict[str, Any], payment_id: UUID) -> Payment:
    """Show a payment; with `sync=true` as the provider has it now, since webhooks may be late."""
    return service.read_payment(payment_id, caller=principal(), **query)


@blueprint.get("/<uuid:payment_id>/client-secret")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, ClientSecretOut)
@blueprint.raises(NotFound, PaymentFinal, *PROVIDER_ERRORS)
def get_client_secret(payment_id: UUID) -> dict[str, str]:
    """Show what one's own payment is confirmed with, to go on with it after a reload."""
    return {"client_secret": service.get_client_secret(payment_id, user_id=principal().id)}


@blueprint.post("/<uuid:payment_id>/cancel")
@limit("write")
@login_required
@idempotent(resume=operations.resume_cancel, required=True)
@blueprint.arguments(Cancel)
@blueprint.response(HTTPStatus.OK, PaymentOut, unsettled=True)
@blueprint.raises(NotFound, InvalidState, ProviderRejected, PaymentsMisconfigured)
def cancel_payment(data: dict[str, Any], payment_id: UUID, resumed: Payment | None) -> tuple[Payment, int]:
    """Cancel a payment that was not made. 202 with `pending_operation`: the provider has not answered yet."""
    return _settled(resumed or operations.cancel_payment(payment_id, caller=principal(), **data))


@blueprint.post("/<uuid:payment_id>/capture")
@limit("write")
@role_required(Role.STAFF)
@idempotent(resume=operations.resume_capture, required=True)
@blueprint.arguments(Capture)
@blueprint.response(HTTPStatus.OK, PaymentOut, unsettled=True)
@blueprint.raises(
    NotFound,
    InvalidState,
    PaymentDeclined,
    ProviderRejected,
    PaymentsMisconfigured,
    fields=(AMOUNT_EXCEEDS_CAPTURABLE,),
)
def capture_payment(data: dict[str, Any], payment_id: UUID, resumed: Payment | None) -> tuple[Payment, int]:
    """Take what was authorised, or a part of it; the rest is released (staff). 202: not answered yet."""
    return _settled(resumed or operations.capture_payment(payment_id, staff_id=principal().id, **data))


@blueprint.post("/<uuid:payment_id>/refunds")
@limit("write")
@role_required(Role.STAFF)
@idempotent(resume=refunds.resume_refund, required=True)
@blueprint.arguments(RefundCreate)
@blueprint.response(HTTPStatus.CREATED, RefundOut, location="/v1/payments/{0.payment_id}/refunds", unsettled=True)
@blueprint.raises(
    NotFound,
    InvalidState,
    PaymentDisputed,
    ProviderRejected,
    PaymentsMisconfigured,
    fields=(REFUND_EXCEEDS_AVAILABLE,),
)
def create_refund(data: dict[str, Any], payment_id: UUID, resumed: Refund | None) -> tuple[Refund, int]:
    """Give money back, a part or all that is left (staff). 202: it is reserved, and the provider has not answered."""
    refund = resumed or refunds.create_refund(payment_id, staff_id=principal().id, **data)
    return refund, HTTPStatus.CREATED if refund.provider_ref else HTTPStatus.ACCEPTED


@blueprint.get("/<uuid:payment_id>/refunds")
@limit("read")
@login_required
@blueprint.arguments(RefundQuery, location="query")
@blueprint.response(HTTPStatus.OK, RefundOut(many=True))
@blueprint.raises(NotFound)
def list_refunds(query: dict[str, Any], payment_id: UUID) -> Page[Refund]:
    """List what was given back of a payment."""
    return refunds.list_refunds(payment_id, caller=principal(), **query)


@blueprint.get("/<uuid:payment_id>/receipt")
@limit("read")
@login_required
@blueprint.response(HTTPStatus.OK, ReceiptOut, also="text/html")
@blueprint.raises(NotFound, NotPaid)
def get_receipt(payment_id: UUID) -> Any:
    """Show the receipt of a payment: as JSON, or with `Accept: text/html` as a page to print."""
    payment = service.read_payment(payment_id, caller=principal())
    return receipt_page.answer(receipts.get_receipt(payment))


@blueprint.post("/webhooks/stripe")
@limit("webhook")
@public
@webhooks.signed("stripe")
@blueprint.response(HTTPStatus.OK, ReceivedOut)
@blueprint.raises(NotFound)
def receive_stripe_webhook(event: Any, payload: str) -> dict[str, bool]:
    """Take an event of Stripe's: the raw body, signed in `Stripe-Signature`. Its effect follows by a job."""
    inbox.receive(event, payload, provider="stripe")
    return {"received": True}


@blueprint.post("/webhooks/sandbox")
@limit("webhook")
@public
@webhooks.signed("sandbox")
@blueprint.response(HTTPStatus.OK, ReceivedOut)
@blueprint.raises(NotFound)
def receive_sandbox_webhook(event: Any, payload: str) -> dict[str, bool]:
    """Take an event of the sandbox's, as one of Stripe's."""
    inbox.receive(event, payload, provider="sandbox")
    return {"received": True}


def _settled(payment: Payment) -> tuple[Payment, int]:
    return payment, HTTPStatus.ACCEPTED if payment.pending_operation else HTTPStatus.OK
