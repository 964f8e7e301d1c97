"""HTTP for prices."""

from http import HTTPStatus
from typing import Any
from uuid import UUID

from project import etags
from project.blueprint import Blueprint
from project.errors import Forbidden, NotFound
from project.etags import Expected
from project.idempotency import idempotent
from project.limits import limit
from project.pagination import Page
from project.payments import prices
from project.payments.models import Price
from project.payments.prices import INVALID_AMOUNT, INVALID_CURRENCY
from project.payments.schemas import PriceCreate, PriceOut, PriceQuery, PriceUpdate
from project.security import Role, find_principal, login_optional, principal, role_required

blueprint = Blueprint("prices", __name__, url_prefix="/prices", description="What things cost")


@blueprint.get("")
@limit("read")
@login_optional
@blueprint.arguments(PriceQuery, location="query")
@blueprint.response(HTTPStatus.OK, PriceOut(many=True))
@blueprint.raises(Forbidden)
def list_prices(query: dict[str, Any]) -> Page[Price]:
    """List the prices that are offered; staff see those that are retired with `active=false`."""
    return prices.list_prices(caller=find_principal(), **query)


@blueprint.get("/<uuid:price_id>")
@limit("read")
@login_optional
@blueprint.response(HTTPStatus.OK, PriceOut)
@etags.conditional
@blueprint.raises(NotFound)
def get_price(price_id: UUID) -> Price:
    """Show a price; one that is retired only to staff."""
    return prices.get_price(price_id, caller=find_principal())


@blueprint.post("")
@limit("write")
@role_required(Role.ADMIN)
@idempotent(resume=prices.get_made)
@blueprint.arguments(PriceCreate)
@blueprint.response(HTTPStatus.CREATED, PriceOut, location="/v1/prices/{0.id}")
@etags.conditional
@blueprint.raises(fields=(INVALID_AMOUNT, INVALID_CURRENCY))
def create_price(data: dict[str, Any], resumed: Price | None) -> Price:
    """Offer something at a fixed `unit_amount`, or at an amount of the customer's own within bounds (admins)."""
    return resumed or prices.create_price(actor_id=principal().id, **data)


@blueprint.patch("/<uuid:price_id>")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.arguments(PriceUpdate)
@blueprint.response(HTTPStatus.OK, PriceOut)
@etags.conditional
@etags.precondition
@blueprint.raises(NotFound)
def update_price(data: dict[str, Any], price_id: UUID, expected: Expected) -> Price:
    """Rename, describe, retire a price or offer it again; its amounts never change (admins)."""
    return prices.update_price(price_id, actor_id=principal().id, expected=expected, **data)
