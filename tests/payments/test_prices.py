"""Prices by their services: who sees and changes which, what they may be, and what comes out for a payment."""

from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from project.audit import AuditEvent
from project.database import db
from project.errors import Forbidden, Invalid, NotFound, PreconditionFailed
from project.pagination import PageRequest
from project.payments import prices
from project.payments.models import Price
from project.security import Role, TokenRequired
from tests.factories import make_user
from tests.payments.paying import caller, make_price

pytestmark = pytest.mark.usefixtures("session")

OPEN: dict[str, Any] = {"min_amount": 500, "max_amount": 10_000}


def refused(error: pytest.ExceptionInfo[Invalid]) -> tuple[str, str]:
    """Return where a single field was refused, and with which code."""
    (field,) = error.value.errors
    return field.pointer, field.code


def make_retired(**values) -> Price:
    """Add a price that is no longer offered."""
    return prices.update_price(make_price(**values).id, actor_id=uuid4(), active=False)


def fresh(price: Price) -> Price:
    """Return a price as it is in the database."""
    found = select(Price).where(Price.id == price.id)
    return db.session.scalars(found, execution_options={"populate_existing": True}).one()


# --- Who sees what ----------------------------------------------------------------------------------------------------


def test_nobody_unknown_lists_retired_prices():
    with pytest.raises(TokenRequired):
        prices.list_prices(caller=None, page=PageRequest(), active=False)


def test_customers_do_not_list_retired_prices():
    with pytest.raises(Forbidden):
        prices.list_prices(caller=caller(make_user()), page=PageRequest(), active=False)


def test_a_retired_price_is_not_there_but_for_staff():
    price = make_retired()

    for reader in (None, caller(make_user())):
        with pytest.raises(NotFound):
            prices.get_price(price.id, caller=reader)
    assert prices.get_price(price.id, caller=caller(make_user(role=Role.STAFF))) is price


def test_a_price_that_never_was_is_not_found():
    with pytest.raises(NotFound):
        prices.get_price(uuid4(), caller=caller(make_user(role=Role.ADMIN)))


def test_everybody_sees_what_is_offered():
    offered, retired = make_price(), make_retired()
    staff = caller(make_user(role=Role.STAFF))

    assert list(prices.list_prices(caller=None, page=PageRequest())) == [offered]
    assert list(prices.list_prices(caller=staff, page=PageRequest())) == [offered]
    assert list(prices.list_prices(caller=staff, page=PageRequest(), active=False)) == [retired]
    assert prices.get_price(offered.id, caller=None) is offered


# --- Making -----------------------------------------------------------------------------------------------------------


def test_a_price_is_fixed_or_open():
    fixed, chosen = make_price(unit_amount=1250, currency="EUR"), make_price(**OPEN)

    assert (fixed.unit_amount, fixed.min_amount, fixed.max_amount, fixed.currency) == (1250, None, None, "EUR")
    assert (chosen.unit_amount, chosen.min_amount, chosen.max_amount) == (None, 500, 10_000)
    assert fixed.active
    assert prices.get_made(fixed.id) is fixed


def test_null_amounts_count_as_absent():
    price = prices.create_price(
        actor_id=None, name="Lesson", currency="USD", unit_amount=500, min_amount=None, max_amount=None
    )

    assert price.unit_amount == 500


def test_a_currency_is_kept_in_upper_case():
    assert make_price(currency="usd").currency == "USD"


def test_making_a_price_is_audited():
    admin = make_user(role=Role.ADMIN)

    price = prices.create_price(actor_id=admin.id, name="Lesson", currency="USD", unit_amount=500)

    (event,) = db.session.scalars(select(AuditEvent)).all()
    assert (event.action, event.actor_id, event.target_id) == ("price_created", admin.id, price.id)


@pytest.mark.parametrize(
    "amounts",
    [
        pytest.param({}, id="none"),
        pytest.param({"unit_amount": 500, **OPEN}, id="both"),
        pytest.param({"unit_amount": 500, "min_amount": 500}, id="fixed-with-a-bound"),
        pytest.param({"min_amount": 500}, id="without-max"),
        pytest.param({"max_amount": 500}, id="without-min"),
    ],
)
def test_amounts_of_neither_kind_are_refused(amounts):
    with pytest.raises(Invalid) as error:
        prices.create_price(actor_id=None, name="Lesson", currency="USD", **amounts)

    assert refused(error) == ("/unit_amount", "invalid_amount")
    assert db.session.scalars(select(Price)).all() == []


def test_the_least_amount_is_not_above_the_most():
    with pytest.raises(Invalid) as error:
        make_price(min_amount=501, max_amount=500)
    assert refused(error) == ("/max_amount", "invalid_amount")
    assert make_price(min_amount=500, max_amount=500).max_amount == 500


@pytest.mark.parametrize("amount", [0, -1])
@pytest.mark.parametrize("name", ["unit_amount", "min_amount"])
def test_amounts_are_positive(name, amount):
    amounts = {"unit_amount": amount} if name == "unit_amount" else {"min_amount": amount, "max_amount": 500}

    with pytest.raises(Invalid) as error:
        make_price(**amounts)
    assert refused(error) == (f"/{name}", "invalid_amount")


@pytest.mark.parametrize(
    "currency",
    ["XXX", "XAU", "US", "USDT", "US\0", "ZZZ", "ISK", "\u0131SD", "", "CHF"],
    ids=ascii,
)
def test_other_currencies_are_refused(currency):
    """Not of ISO 4217, without a unit, counted otherwise by the provider, or not offered here (CHF)."""
    with pytest.raises(Invalid) as error:
        make_price(currency=currency)
    assert refused(error) == ("/currency", "invalid_currency")


def test_an_amount_of_three_decimals_ends_in_zero(set_payments):
    set_payments(currencies=["KWD"])

    assert make_price(currency="KWD", unit_amount=5120).unit_amount == 5120
    for name, amounts in {
        "/unit_amount": {"unit_amount": 5124},
        "/min_amount": {"min_amount": 5124, "max_amount": 9000},
        "/max_amount": {"min_amount": 5120, "max_amount": 9001},
    }.items():
        with pytest.raises(Invalid) as error:
            make_price(currency="KWD", **amounts)
        assert refused(error) == (name, "invalid_amount")


# --- Changing ---------------------------------------------------------------------------------------------------------


def test_a_price_is_renamed_described_and_retired():
    price, admin = make_price(), make_user(role=Role.ADMIN)

    prices.update_price(price.id, actor_id=admin.id, name="Lesson", description="One hour", active=False)

    changed = fresh(price)
    assert (changed.name, changed.description, changed.active, changed.version) == ("Lesson", "One hour", False, 2)
    actions = db.session.scalars(select(AuditEvent.action).where(AuditEvent.actor_id == admin.id)).all()
    assert actions == ["price_changed"]


def test_a_retired_price_is_offered_again():
    price = make_retired()

    prices.update_price(price.id, actor_id=uuid4(), active=True)

    assert prices.get_price(price.id, caller=None).active


def test_no_change_changes_nothing():
    price = make_price()
    before = (price.version, price.updated_at)

    same = prices.update_price(price.id, actor_id=uuid4())

    assert (same.version, same.updated_at) == before
    assert db.session.scalars(select(AuditEvent.action)).all() == ["price_created"]


def test_a_price_that_somebody_has_changed_is_not_overwritten():
    price = make_price()
    seen = frozenset({(price.id, price.version)})
    prices.update_price(price.id, actor_id=uuid4(), name="Theirs", expected=seen)

    for changes in ({"name": "Mine"}, {}):
        with pytest.raises(PreconditionFailed):
            prices.update_price(price.id, actor_id=uuid4(), expected=seen, **changes)
    assert fresh(price).name == "Theirs"


def test_a_price_that_never_was_is_not_changed():
    with pytest.raises(NotFound):
        prices.update_price(uuid4(), actor_id=uuid4(), name="x")


# --- What is to be paid -----------------------------------------------------------------------------------------------


def test_a_fixed_price_is_multiplied():
    assert prices.total(make_price(unit_amount=333), quantity=3, amount=None) == 999


def test_what_is_fixed_takes_no_amount():
    with pytest.raises(Invalid) as error:
        prices.total(make_price(), quantity=1, amount=1000)
    assert refused(error) == ("/amount", "invalid_amount")


def test_no_more_than_eight_digits_are_paid_at_once():
    price = make_price(unit_amount=33_333_333)

    assert prices.total(price, quantity=3, amount=None) == prices.MAX_AMOUNT
    with pytest.raises(Invalid) as error:
        prices.total(price, quantity=4, amount=None)
    assert refused(error) == ("/quantity", "invalid_amount")


@pytest.mark.parametrize("amount", [500, 777, 10_000])
def test_an_open_price_is_what_the_customer_says(amount):
    assert prices.total(make_price(**OPEN), quantity=1, amount=amount) == amount


@pytest.mark.parametrize("amount", [None, 0, -500, 499, 10_001])
def test_an_open_price_has_bounds(amount):
    with pytest.raises(Invalid) as error:
        prices.total(make_price(**OPEN), quantity=1, amount=amount)
    assert refused(error) == ("/amount", "invalid_amount")


def test_an_amount_of_ones_own_is_paid_once():
    with pytest.raises(Invalid) as error:
        prices.total(make_price(**OPEN), quantity=2, amount=700)
    assert refused(error) == ("/quantity", "invalid_amount")


def test_an_amount_of_ones_own_fits_its_currency(set_payments):
    set_payments(currencies=["KWD"])
    price = make_price(currency="KWD", min_amount=1000, max_amount=9000)

    assert prices.total(price, quantity=1, amount=1500) == 1500
    with pytest.raises(Invalid) as error:
        prices.total(price, quantity=1, amount=1501)
    assert refused(error) == ("/amount", "invalid_amount")


def test_nothing_is_paid_at_a_retired_price():
    with pytest.raises(Invalid) as error:
        prices.total(make_retired(), quantity=1, amount=None)
    assert refused(error) == ("/price_id", "price_inactive")
