"""HTTP for the sandbox: what a customer's browser does at the provider, and what a developer lets go wrong."""

from http import HTTPStatus
from typing import Any

from flask import Response

from project.blueprint import Blueprint
from project.config import settings
from project.errors import NotFound
from project.limits import limit
from project.pagination import Page
from project.payments.failures import InvalidState, PaymentDeclined, told
from project.payments.sandbox import browser, clock, faults, page
from project.payments.sandbox.browser import INVALID_METHOD, Outcome, WrongClientSecret
from project.payments.sandbox.delivery import post
from project.payments.sandbox.methods import METHODS, TestMethod
from project.payments.sandbox.schemas import (
    AdvancedOut,
    Authenticate,
    Confirm,
    FaultSet,
    OutcomeOut,
    PageQuery,
    PaymentMethodOut,
)
from project.security import Role, public, role_required

blueprint = Blueprint("sandbox", __name__, url_prefix="/sandbox", description="The built-in payment provider for tests")

HTML = {"type": "string"}


@blueprint.before_request
def only_while_it_is_the_provider() -> None:
    """Refuse everything here where another provider is set."""
    if settings.payments.provider != "sandbox":
        raise NotFound()


@blueprint.get("/payment-methods")
@limit("read")
@public
@blueprint.response(HTTPStatus.OK, PaymentMethodOut(many=True))
@blueprint.raises(NotFound)
def list_payment_methods() -> Page[TestMethod]:
    """List the payment methods for tests, and how each behaves."""
    return Page(METHODS.values(), limit=len(METHODS))


@blueprint.post("/payment-intents/<ref>/confirm")
@limit("write")
@public
@blueprint.arguments(Confirm)
@blueprint.response(HTTPStatus.OK, OutcomeOut)
@blueprint.raises(NotFound, WrongClientSecret, PaymentDeclined, InvalidState, fields=(INVALID_METHOD,))
def confirm_payment_intent(data: dict[str, Any], ref: str) -> Outcome:
    """Pay as the customer. With `next_action` the customer has to approve it on the page that it names."""
    with told():
        return browser.confirm(ref, **data)


@blueprint.get("/payment-intents/<ref>/authenticate")
@limit("read")
@public
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(HTTPStatus.OK, HTML, content_type="text/html", example="<!doctype html>")
@blueprint.raises(NotFound, WrongClientSecret)
def show_authentication(query: dict[str, Any], ref: str) -> Response:
    """Show the page on which the customer approves a payment or fails to, as a bank would (3-D Secure)."""
    return page.show(browser.get_approval(ref, **query))


@blueprint.post("/payment-intents/<ref>/authenticate")
@limit("write")
@public
@blueprint.arguments(Authenticate, location="json_or_form")
@blueprint.response(HTTPStatus.OK, OutcomeOut, also="text/html", redirects=True)
@blueprint.raises(NotFound, WrongClientSecret, InvalidState)
def authenticate_payment_intent(data: dict[str, Any], ref: str) -> Outcome | Response:
    """Approve a payment as the customer, or fail to; 303 to the `return_url` of the confirmation, if it had one."""
    if page.is_asked_for():
        return page.decide(ref, **data)
    with told():
        outcome = browser.authenticate(ref, **data)
    return page.redirect(outcome.return_to) if outcome.return_to else outcome


@blueprint.post("/faults")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.arguments(FaultSet)
@blueprint.response(HTTPStatus.NO_CONTENT)
@blueprint.raises(NotFound)
def set_fault(data: dict[str, Any]) -> None:
    """Let the next calls of the provider fail, or the next webhooks be lost, doubled or shuffled (admins)."""
    faults.set_fault(**data)


@blueprint.post("/advance")
@limit("write")
@role_required(Role.ADMIN)
@blueprint.response(HTTPStatus.OK, AdvancedOut)
@blueprint.raises(NotFound)
def advance() -> dict[str, int]:
    """Let happen now what would within the next hour, and deliver all webhooks (admins)."""
    return {"delivered": clock.advance(post)}
