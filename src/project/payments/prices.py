"""Prices: what things cost, set here and never by a client."""

from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from project import audit
from project.config import settings
from project.currencies import check_amount, check_currency
from project.database import db, transaction, uuid7
from project.errors import Forbidden, Invalid, NotFound, PreconditionFailed, field_code
from project.etags import Expected, matches
from project.idempotency_keys import attach
from project.pagination import Page, PageRequest, paginate
from project.payments.models import PRICE_SORTS, Price
from project.security import Principal, Role, TokenRequired

# Eight digits: the most that Stripe takes at once.
MAX_AMOUNT = 99_999_999

PRICE_INACTIVE = field_code("price_inactive", "This price is no longer offered.", "Choose one of GET /v1/prices.")
INVALID_CURRENCY = field_code(
    "invalid_currency", "Nothing can be paid in this currency.", "Use one of `currencies` in GET /v1/payments/config."
)
INVALID_AMOUNT = field_code("invalid_amount", "This amount cannot be paid.", "See the price for the amounts it allows.")


def list_prices(*, caller: Principal | None, page: PageRequest, active: bool = True) -> Page[Price]:
    """Return a page of the prices that are offered, or for staff of those that are retired.

    Raises:
        TokenRequired, Forbidden: retired ones are for staff.
    """
    if not active:
        if caller is None:
            raise TokenRequired()
        if not caller.role.covers(Role.STAFF):
            raise Forbidden()
    statement = select(Price).where(Price.active.is_(active))
    return paginate(statement, page, sorts=PRICE_SORTS, tiebreaker=Price.id, owner=caller.id if caller else None)


def get_price(price_id: UUID, *, caller: Principal | None) -> Price:
    """Return a price; a retired one only to staff.

    Raises:
        NotFound.
    """
    price = find_price(price_id)
    sees_retired = caller is not None and caller.role.covers(Role.STAFF)
    if price is None or not (price.active or sees_retired):
        raise NotFound("There is no such price.")
    return price


def find_price(price_id: UUID) -> Price | None:
    """Return a price, retired or not."""
    return db.session.scalar(select(Price).where(Price.id == price_id))


def get_made(price_id: UUID) -> Price:
    """Return the price that an earlier request with the same Idempotency-Key has made."""
    return db.session.scalars(select(Price).where(Price.id == price_id)).one()


def create_price(*, actor_id: UUID | None, **values: Any) -> Price:
    """Add a price: `unit_amount`, or `min_amount` and `max_amount` for one that the customer chooses.

    Raises:
        Invalid: the amounts are neither the one nor the other, or the currency does not have such.
    """
    price = Price(id=uuid7(), **_checked(values))
    with transaction():
        db.session.add(price)
        attach(price.id)
        audit.record("price_created", actor_id=actor_id, target_type="price", target_id=price.id)
    return price


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a new price, of which one shape of amounts is there and fits the currency."""
    try:
        currency = check_currency(values["currency"])
    except ValueError as error:
        raise Invalid.field("/currency", INVALID_CURRENCY, str(error)) from error
    if currency not in settings.payments.currencies:
        offered = ", ".join(settings.payments.currencies)
        raise Invalid.field("/currency", INVALID_CURRENCY, f"Prices here are in {offered}.")
    given = [name for name in ("unit_amount", "min_amount", "max_amount") if values.get(name) is not None]
    if given not in (["unit_amount"], ["min_amount", "max_amount"]):
        raise Invalid.field("/unit_amount", INVALID_AMOUNT, "Send unit_amount, or min_amount and max_amount.")
    for name in given:
        _check_amount(values[name], currency, f"/{name}")
    if "max_amount" in given and values["max_amount"] < values["min_amount"]:
        raise Invalid.field("/max_amount", INVALID_AMOUNT, "This is less than min_amount.")
    return {**values, "currency": currency}


def _check_amount(amount: int, currency: str, pointer: str) -> None:
    try:
        check_amount(amount, currency)
    except ValueError as error:
        raise Invalid.field(pointer, INVALID_AMOUNT, str(error)) from error


def update_price(price_id: UUID, *, actor_id: UUID, expected: Expected = None, **changes: Any) -> Price:
    """Rename, describe, retire or offer a price again. Its amounts never change.

    Raises:
        NotFound, PreconditionFailed.
    """
    change = update(Price).where(Price.id == price_id, matches(Price, expected))
    values = {**changes, "version": Price.version + 1} if changes else {"updated_at": Price.updated_at}
    with transaction():
        price: Price | None = db.session.scalar(
            change.values(values).returning(Price), execution_options={"populate_existing": True}
        )
        if price is None:
            if find_price(price_id) is None:
                raise NotFound("There is no such price.")
            raise PreconditionFailed()
        if changes:
            audit.record("price_changed", actor_id=actor_id, target_type="price", target_id=price_id)
    return price


def total(price: Price, *, quantity: int, amount: int | None) -> int:
    """Return what is to be paid: the server's arithmetic, never the client's.

    Raises:
        Invalid: price_inactive, or invalid_amount where the client's amount does not fit the price.
    """
    if not price.active:
        raise Invalid.field("/price_id", PRICE_INACTIVE)
    if price.unit_amount is not None:
        if amount is not None:
            raise Invalid.field("/amount", INVALID_AMOUNT, "The price is fixed; leave the amount out.")
        if price.unit_amount * quantity > MAX_AMOUNT:
            raise Invalid.field("/quantity", INVALID_AMOUNT, "That many cannot be paid at once.")
        return price.unit_amount * quantity
    if quantity != 1:
        raise Invalid.field("/quantity", INVALID_AMOUNT, "An amount of one's own is paid once.")
    if amount is None or not (price.min_amount or 0) <= amount <= (price.max_amount or 0):
        bounds = f"Send an amount from {price.min_amount} to {price.max_amount}."
        raise Invalid.field("/amount", INVALID_AMOUNT, bounds)
    _check_amount(amount, price.currency, "/amount")
    return amount
