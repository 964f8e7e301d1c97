"""The page on which a customer approves a payment, in the place of a bank's."""

from contextlib import suppress
from http import HTTPStatus
from typing import Literal

from flask import Response, render_template, request

from project.payments.gateway_types import InOtherState
from project.payments.money import display
from project.payments.sandbox import browser
from project.payments.sandbox.browser import Approval

# Not form-action: the answer to the form may send the customer on to any site.
CSP = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src 'self'; img-src 'self'"


def is_asked_for() -> bool:
    """Tell whether the answer to this request is for a person to see: a browser's form says so, a program does not."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def decide(ref: str, *, client_secret: str, outcome: Literal["approve", "fail"]) -> Response:
    """Take the customer's decision and send them back, or with nowhere to go show what came of it.

    Raises:
        WrongClientSecret.
    """
    # A double click sends the form twice, and what the browser follows is the answer to the second.
    with suppress(InOtherState):
        browser.authenticate(ref, client_secret=client_secret, outcome=outcome)
    approval = browser.get_approval(ref, client_secret=client_secret)
    return redirect(approval.return_to) if approval.return_to else show(approval)


def show(approval: Approval) -> Response:
    """Return the page for a payment."""
    amount = display(approval.payment.amount, approval.payment.currency)
    html = render_template("sandbox/authenticate.html", approval=approval, payment=approval.payment, amount=amount)
    return Response(html, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-store"})


def redirect(url: str) -> Response:
    """Send the customer back, by GET whatever the method was; the address carries the client secret."""
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": url, "Cache-Control": "no-store"})
