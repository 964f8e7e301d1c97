"""Payments: made at a price, captured, canceled and read. What they are at comes from the provider's snapshots.

Each change is three steps: a short transaction that says what will be asked (so that a crash leaves a row that
reconciliation finds), the provider's answer without any transaction, and a snapshot applied. The provider's keys are
made from our rows: asked twice, it does it once.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from project.config import settings
from project.database import db, give_back, transaction, utcnow, uuid7
from project.errors import Conflict, NotFound
from project.idempotency_keys import attach
from project.limits import spend
from project.pagination import Page, PageRequest, paginate
from project.payments import prices
from project.payments.failures import refusal, told
from project.payments.gateway import current_gateway
from project.payments.gateway_types import (
    KEYS_LIVE,
    GatewayError,
    Intent,
    Misconfigured,
    OutcomeUnknown,
    PaymentSnapshot,
    Rejected,
    TooManyRequests,
)
from project.payments.models import PAYMENT_SORTS, CaptureMethod, Payment, PaymentStatus
from project.payments.snapshots import DEAD, apply_payment
from project.payments.timeline import note
from project.security import Principal, Role
from project.users.service import keep_user


class PaymentExists(Conflict):
    """409: this user has a living payment with the same reference."""

    code = "payment_exists"
    message = "There is a payment with this reference already."
    cure = "Go on with the payment of `payment_id`: get its client secret and confirm it."


class PaymentFinal(Conflict):
    """409: nothing can be paid here any more."""

    code = "payment_final"
    message = "This payment is finished."
    cure = "Show its status; make another payment if something is still to be paid."


def create_payment(
    *,
    user_id: UUID,
    price_id: UUID,
    quantity: int = 1,
    amount: int | None = None,
    reference: str | None = None,
    metadata: dict[str, str] | None = None,
    capture_method: CaptureMethod = CaptureMethod.AUTOMATIC,
) -> Payment:
    """Make a payment at a price and its counterpart at the provider.

    Raises:
        NotFound: there is no such price. Invalid: price_inactive, invalid_amount. SessionRevoked: just erased.
        PaymentExists: with its id. ProviderUnavailable: what the provider did is unknown; repeat with the same key.
    """
    price = prices.find_price(price_id)
    if price is None:
        raise NotFound("There is no such price.")
    payment = Payment(
        id=uuid7(),
        user_id=user_id,
        price_id=price.id,
        quantity=quantity,
        provider=settings.payments.provider,
        livemode=settings.payments.livemode,
        reference=reference,
        amount=prices.total(price, quantity=quantity, amount=amount),
        currency=price.currency,
        capture_method=capture_method,
        description=price.name,
        labels=metadata or {},
    )
    _add(payment, user_id)
    return _made(payment)


def _add(payment: Payment, user_id: UUID) -> None:
    try:
        with transaction():
            keep_user(user_id)
            db.session.add(payment)
            db.session.flush()
            note(payment.id, "user", "created", amount=payment.amount, currency=payment.currency)
            attach(payment.id)
    except IntegrityError as error:
        other = _find_other(user_id, payment.reference)
        if other is None:
            raise
        raise PaymentExists(payment_id=str(other)) from error


def _made(payment: Payment) -> Payment:
    """Make a payment at the provider for the customer who waits for it.

    Raises:
        ProviderUnavailable, PaymentsMisconfigured: it is to be asked again. Invalid, ProviderRejected: it was refused.
    """
    if payment.status is PaymentStatus.CREATED:
        with told():
            payment = ask_to_create(payment, actor="user")
    if payment.status is PaymentStatus.FAILED:
        raise refusal(Rejected(str(payment.failure_code)))
    return payment


def ask_to_create(payment: Payment, *, actor: str) -> Payment:
    """Make the payment at the provider, or find that it was made: asked again, the provider gives the same one.

    One that the provider refuses has failed then.

    Raises:
        OutcomeUnknown, TooManyRequests, Misconfigured: it waits to be asked for again.
    """
    intent = Intent(
        payment_id=payment.id,
        amount=payment.amount,
        currency=payment.currency,
        capture_method=payment.capture_method,
        description=payment.description,
    )
    give_back()
    try:
        snapshot = _find_made(payment) or current_gateway().create_payment(intent, key=f"{payment.id}:create")
    except (OutcomeUnknown, TooManyRequests, Misconfigured):
        raise
    except GatewayError as error:
        return give_up(payment, code=str(error), actor=actor)
    made = apply_payment(payment.id, snapshot, actor=actor)
    made.client_secret = snapshot.client_secret
    return made


def _find_made(payment: Payment) -> PaymentSnapshot | None:
    """Find what an earlier request has made, if the provider has forgotten its key: it would make a second one."""
    if payment.created_at > utcnow() - KEYS_LIVE:
        return None
    return current_gateway().find_payment(payment.id, since=payment.created_at)


def resume_payment(payment_id: UUID) -> Payment:
    """Go on with a payment whose request died or failed: make it at the provider if that is not known to be done.

    Raises:
        ProviderUnavailable, PaymentsMisconfigured. Invalid, ProviderRejected: what the first request was told as well.
    """
    payment = get_payment(payment_id, reader_id=None)
    if payment.provider_ref is None:
        return _made(payment)
    return update_from_provider(payment, actor="user")


def get_client_secret(payment_id: UUID, *, user_id: UUID) -> str:
    """Return what the customer's browser confirms the payment with.

    Raises:
        NotFound, PaymentFinal, ProviderUnavailable.
    """
    payment = get_payment(payment_id, reader_id=user_id)
    if not payment.status.final:
        payment = update_from_provider(payment, actor="user")
    if payment.status.final:
        raise PaymentFinal()
    return str(payment.client_secret)


def fetch_client_secret(payment_id: UUID) -> str:
    """Return the client secret for an answer that is told again; the payment stays as it is.

    Raises:
        ProviderUnavailable.
    """
    return str(_look(get_payment(payment_id, reader_id=None)).client_secret)


def update_from_provider(payment: Payment, *, actor: str) -> Payment:
    """Return a payment as the provider has it now, with its client secret; webhooks may be late, or not set up.

    Raises:
        ProviderUnavailable, PaymentsMisconfigured, ProviderRejected.
    """
    if payment.status is PaymentStatus.CREATED:
        with told():
            return ask_to_create(payment, actor=actor)
    if payment.provider_ref is None:
        return payment
    snapshot = _look(payment)
    fresh = apply_payment(payment.id, snapshot, actor=actor)
    # We do not keep it.
    fresh.client_secret = snapshot.client_secret
    return fresh


def get_payment(payment_id: UUID, *, reader_id: UUID | None) -> Payment:
    """Return a payment of an account, or with None anybody's, for staff.

    Raises:
        NotFound.
    """
    statement = select(Payment).where(Payment.id == payment_id)
    if reader_id is not None:
        statement = statement.where(Payment.user_id == reader_id)
    # Fresh: what the session has of it may be from before a call to the provider.
    payment = db.session.scalar(statement, execution_options={"populate_existing": True})
    if payment is None:
        raise NotFound("There is no such payment.")
    return payment


def read_payment(payment_id: UUID, *, caller: Principal, sync: bool = False) -> Payment:
    """Return a payment of one's own, or anybody's to staff; with `sync` as the provider has it now.

    Raises:
        NotFound, RateLimited, ProviderUnavailable.
    """
    payment = get_payment(payment_id, reader_id=reader_of(caller))
    if not sync:
        return payment
    spend("sync", str(caller.id), str(payment_id))
    return update_from_provider(payment, actor="user" if payment.user_id == caller.id else f"staff:{caller.id}")


def reader_of(caller: Principal) -> UUID | None:
    """Return whose payments somebody sees: None, everybody's, for staff."""
    return None if caller.role.covers(Role.STAFF) else caller.id


def list_payments(
    *,
    caller_id: UUID,
    user_id: UUID | None,
    page: PageRequest,
    status: PaymentStatus | None = None,
    reference: str | None = None,
    created_after: datetime | None = None,
) -> Page[Payment]:
    """Return a page of the payments of an account, or with `user_id` None of all."""
    statement = select(Payment)
    if user_id is not None:
        statement = statement.where(Payment.user_id == user_id)
    if status is not None:
        statement = statement.where(Payment.status == status)
    if reference is not None:
        statement = statement.where(Payment.reference == reference)
    if created_after is not None:
        statement = statement.where(Payment.created_at > created_after)
    return paginate(statement, page, sorts=PAYMENT_SORTS, tiebreaker=Payment.id, owner=caller_id)


def _find_other(user_id: UUID, reference: str | None) -> UUID | None:
    """Return the payment that has this reference; it may have ended since it was in the way."""
    same = (Payment.user_id == user_id, Payment.reference == reference, Payment.reference.is_not(None))
    ended = Payment.status.in_(DEAD)
    return db.session.scalar(select(Payment.id).where(*same).order_by(ended, Payment.id.desc()).limit(1))


def _look(payment: Payment) -> PaymentSnapshot:
    give_back()
    with told():
        return current_gateway().retrieve_payment(str(payment.provider_ref))


def give_up(payment: Payment, *, code: str = "never_arrived", actor: str) -> Payment:
    """End a payment that is not at the provider, unless it is; return it as it is then."""
    still = update(Payment).where(Payment.id == payment.id, Payment.status == PaymentStatus.CREATED)
    values = {
        "status": PaymentStatus.FAILED,
        "failure_code": code[:64],
        "pending_operation": None,
        "version": Payment.version + 1,
    }
    with transaction():
        if db.session.scalar(still.values(values).returning(Payment.id)) is not None:
            note(payment.id, actor, "status", before=PaymentStatus.CREATED, after=PaymentStatus.FAILED)
        found = select(Payment).where(Payment.id == payment.id)
        return db.session.scalars(found, execution_options={"populate_existing": True}).one()
