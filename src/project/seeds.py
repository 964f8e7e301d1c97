"""Demo data for development: made once, through the same services as everything else."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any
from uuid import UUID

from PIL import Image, ImageDraw
from sqlalchemy import exists, select

from project.auth.passwords import hash_password
from project.config import settings
from project.database import db, transaction
from project.errors import CommandRefused
from project.files import service as files
from project.files.models import UploadMethod
from project.files.uploads import Description, upload_raw
from project.payments import inbox, operations, prices, reconcile, refunds
from project.payments import service as payments
from project.payments.gateway_types import Declined
from project.payments.models import CaptureMethod, Payment, Price, RefundReason
from project.payments.sandbox import browser, delivery
from project.security import Principal, Role
from project.users import service as users
from project.users.models import User

DEMO_ACCOUNTS = {
    "demo@example.com": ("Demo User", Role.USER),
    "staff@example.com": ("Demo Staff", Role.STAFF),
    "admin@example.com": ("Demo Admin", Role.ADMIN),
}


DEMO_OWNER = "demo@example.com"
DEMO_STAFF = "staff@example.com"
PURPOSE = "demo"
# Red, green and blue of a brightness from 0 (the top) to 255 (the horizon).
LESSON = {"name": "Piano lesson", "description": "One hour with a teacher.", "unit_amount": 4500}
DONATION = {"name": "Donation", "description": "As much as you like.", "min_amount": 500, "max_amount": 100_000}
SKY = (lambda y: 40 + y * 0.82, lambda y: 60 + y * 0.45, lambda y: 140 - y * 0.35)


class SeedRefused(CommandRefused):
    """Demo accounts have no place in production."""


def seed() -> str | None:
    """Create what is missing of the demo data; return the password of the accounts if any was made.

    Raises:
        SeedRefused: in production.
    """
    if settings.production:
        raise SeedRefused("Demo data is not for production; use `flask users create-admin`.")
    password = _seed_accounts()
    _seed_picture()
    lesson, donation = _seed_price(**LESSON), _seed_price(**DONATION)
    if settings.payments.provider == "sandbox":
        _seed_payments(lesson, donation)
    return password


def _seed_accounts() -> str | None:
    missing = [email for email in DEMO_ACCOUNTS if users.find_by_email(email) is None]
    if not missing:
        return None
    password = f"demo-{secrets.token_urlsafe(12)}"
    password_hash = hash_password(password)
    with transaction():  # all or none: the password is shown once
        for email in missing:
            name, role = DEMO_ACCOUNTS[email]
            users.create_user(email=email, name=name, role=role, password_hash=password_hash, email_verified=True)
    return password


def _seed_picture() -> None:
    """Give the demo user a picture, unless there is one."""
    owner = users.find_by_email(DEMO_OWNER)
    if owner is None or files.find_by_purpose(PURPOSE, owner_id=owner.id) is not None:
        return
    described = Description(UploadMethod.RAW, "sunset.png", "image/png", purpose=PURPOSE)
    upload_raw(described, [_sunset()], owner_id=owner.id, length=None)


def _sunset() -> bytes:
    """Paint a picture that is worth a thumbnail: a sky from blue to orange, and the sun."""
    sky = Image.merge("RGB", [Image.linear_gradient("L").point(channel) for channel in SKY]).resize((960, 640))
    ImageDraw.Draw(sky).ellipse((380, 330, 580, 530), fill=(255, 244, 214))
    painted = BytesIO()
    sky.save(painted, "PNG")
    return painted.getvalue()


def _seed_price(**values: Any) -> Price:
    """Return the price of this name; the first of the currencies is the one it is in when it is made."""
    known = db.session.scalars(select(Price).where(Price.name == values["name"]).limit(1)).first()
    return known or prices.create_price(actor_id=None, currency=settings.payments.currencies[0], **values)


def _seed_payments(lesson: Price, donation: Price) -> None:
    """Give the demo user a payment in each state that a client has to show; one that is there stays as it is."""
    owner, staff = users.find_by_email(DEMO_OWNER), users.find_by_email(DEMO_STAFF)
    if owner is None or staff is None:
        return
    _seed_payment(owner, "demo-paid", lesson, pays_with="pm_card_visa", quantity=2)
    _seed_payment(
        owner,
        "demo-refunded",
        donation,
        pays_with="pm_card_mastercard",
        then=lambda payment_id: _refund(payment_id, staff),
        amount=5000,
    )
    _seed_payment(owner, "demo-declined", lesson, pays_with="pm_card_visa_chargeDeclinedInsufficientFunds")
    _seed_payment(owner, "demo-authorized", lesson, pays_with="pm_card_amex", capture_method=CaptureMethod.MANUAL)
    _seed_payment(owner, "demo-canceled", lesson, then=lambda payment_id: _cancel(payment_id, owner))


def _seed_payment(
    owner: User,
    reference: str,
    price: Price,
    *,
    pays_with: str | None = None,
    then: Callable[[UUID], object] | None = None,
    **values: Any,
) -> None:
    """Make a payment and let happen what its customer and we do with it."""
    known = exists().where(Payment.user_id == owner.id, Payment.reference == reference)
    if db.session.scalar(select(known)):
        return
    made = payments.create_payment(user_id=owner.id, price_id=price.id, reference=reference, **values)
    if pays_with is not None:
        _pay(made, pays_with)
    if then is not None:
        then(made.id)
        _hear()


def _pay(payment: Payment, method: str) -> None:
    with suppress(Declined):  # as some are to be
        browser.confirm(str(payment.provider_ref), client_secret=str(payment.client_secret), payment_method=method)
    _hear()


def _hear() -> None:
    """Take the webhooks at once, and act on them: nobody runs jobs here."""
    delivery.deliver_due(inbox.take)
    reconcile.process_events()


def _refund(payment_id: UUID, staff: User) -> None:
    reason = RefundReason.REQUESTED_BY_CUSTOMER
    refunds.create_refund(payment_id, staff_id=staff.id, amount=2000, reason=reason, note="A part was enough.")


def _cancel(payment_id: UUID, owner: User) -> None:
    operations.cancel_payment(payment_id, caller=Principal(owner, owner.id), reason="Changed my mind.")
