"""The page on which a customer approves a payment, in the place of a bank's."""

from http import HTTPStatus

from flask import Response, render_template

from project.payments.gateway_types import PaymentSnapshot
from project.payments.money import display

# Not form-action: the answer to the form may send the customer on to any site.
CSP = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; style-src 'self'; img-src 'self'"


def show(payment: PaymentSnapshot, *, client_secret: str) -> Response:
    """Return the page for a payment."""
    html = render_template(
        "sandbox/authenticate.html",
        amount=display(payment.amount, payment.currency),
        client_secret=client_secret,
        open=payment.status == "requires_action",
    )
    return Response(html, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-store"})


def redirect(url: str) -> Response:
    """Send the customer back, by GET whatever the method was; the address carries the client secret."""
    return Response(status=HTTPStatus.SEE_OTHER, headers={"Location": url, "Cache-Control": "no-store"})
