"""Holding what the provider has against what we have: what differs is made right where the provider decides it."""

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select

from project.config import settings
from project.database import db, give_back, utcnow
from project.payments.gateway import current_gateway
from project.payments.gateway_types import OutcomeUnknown, PaymentSnapshot
from project.payments.models import Dispute, Payment
from project.payments.snapshots import apply_dispute, apply_payment, apply_refund

logger = logging.getLogger(__name__)


@dataclass
class Comparison:
    """What differed and is right now, and what still differs."""

    repaired: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def compare(*, since: timedelta, settled: timedelta, dry_run: bool = False) -> Comparison:
    """Compare the payments that were made at the provider within this time with ours.

    Raises:
        GatewayError: the provider does not answer.
    """
    found, now = Comparison(), utcnow()
    give_back()
    for snapshot in current_gateway().list_payments(since=now - since):
        if snapshot.payment_id is None:
            continue  # Somebody else uses the same account.
        payment = _find(snapshot.payment_id)
        if payment is None or payment.provider_ref not in (None, snapshot.ref):
            found.left.append(f"orphan_at_provider: {snapshot.ref}")
        elif payment.updated_at < now - settled:
            try:
                _hold(found, payment, snapshot, dry_run=dry_run)
            except OutcomeUnknown as error:
                # A refund of ours and one made at the provider collide; once it is known what became of ours, they fit.
                found.left.append(f"Payment {payment.id}: {error}")
        give_back()
    _compare_disputes(found, since=since, dry_run=dry_run)
    return found


def _compare_disputes(found: Comparison, *, since: timedelta, dry_run: bool) -> None:
    """Mirror the disputes that were opened within this time, and those of which we do not know the end."""
    gateway = current_gateway()
    snapshots = {snapshot.ref: snapshot for snapshot in gateway.list_disputes(since=utcnow() - since)}
    open_or_named = or_(Dispute.closed_at.is_(None), Dispute.provider_ref.in_(snapshots))
    rows = select(Dispute.provider_ref, Dispute.status, Dispute.funds_withdrawn).where(open_or_named)
    rows = rows.join(Payment, Payment.id == Dispute.payment_id).where(_ours())
    known = {ref: (status, withdrawn) for ref, status, withdrawn in db.session.execute(rows)}
    give_back()
    for ref in known.keys() - snapshots.keys():
        snapshots[ref] = gateway.retrieve_dispute(ref)
    for snapshot in snapshots.values():
        if known.get(snapshot.ref) == (snapshot.status, snapshot.withdrawn > 0):
            continue
        told = f"Dispute {snapshot.ref}: {snapshot.status}"
        if dry_run:
            found.left.append(told)
        elif apply_dispute(snapshot, actor="reconcile") is not None:
            found.repaired.append(told)


def _find(payment_id: UUID) -> Payment | None:
    known = select(Payment).where(Payment.id == payment_id, _ours())
    return db.session.scalar(known, execution_options={"populate_existing": True})


def _ours() -> ColumnElement[bool]:
    """Tell which payments are of the provider and mode that are set now."""
    return and_(Payment.provider == settings.payments.provider, Payment.livemode == settings.payments.livemode)


def _hold(found: Comparison, payment: Payment, snapshot: PaymentSnapshot, *, dry_run: bool) -> None:
    differences = _differences(payment, snapshot)
    refunds_differ = not _refunds_agree(payment, snapshot)
    if not differences and not refunds_differ:
        return
    told = f"Payment {payment.id}: {', '.join([*differences, *['amount_refunded'] * refunds_differ])}"
    if not dry_run:
        version = payment.version
        payment = apply_payment(payment.id, snapshot, actor="reconcile")
        if refunds_differ:
            for refund in list(current_gateway().list_refunds(snapshot.ref)):
                apply_refund(refund, actor="reconcile")
        differences = _differences(payment, snapshot)
        if not differences:
            # The provider may go on counting a refund that failed: then nothing was wrong.
            found.repaired += [told] * (payment.version != version)
            return
    logger.error("payment_differs", extra={"payment_id": str(payment.id), "reason": told})
    found.left.append(told)


def _differences(payment: Payment, snapshot: PaymentSnapshot) -> list[str]:
    """Name what the provider has otherwise."""
    pairs = {
        "status": (payment.status, snapshot.status),
        "amount": (payment.amount, snapshot.amount),
        "currency": (payment.currency, snapshot.currency),
        "amount_captured": (payment.amount_captured, snapshot.amount_received),
    }
    return [name for name, (ours, theirs) in pairs.items() if ours != theirs]


def _refunds_agree(payment: Payment, snapshot: PaymentSnapshot) -> bool:
    """Tell whether what was given back is the same; the provider counts what is pending."""
    least, most = payment.amount_refunded, payment.amount_refunded + payment.amount_refund_reserved
    return least <= snapshot.amount_refunded <= most
