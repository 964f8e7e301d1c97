"""The receipt over HTTP: as JSON, or as one page to look at and to print."""

import base64
import hashlib
from http import HTTPStatus
from pathlib import Path

from flask import Response, render_template, request

from project.mail import PRODUCT_NAME
from project.payments.money import display
from project.payments.receipts import Receipt, show_time

# Within the page, so that it is still whole when somebody has saved it.
STYLE = (Path(__file__).parents[1] / "templates" / "receipts" / "receipt.css").read_text()
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
CSP = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{_STYLE_DIGEST}'"
)


def answer(receipt: Receipt) -> Response | tuple[Receipt, int, dict[str, str]]:
    """Answer the current request with a receipt: the page to clients that prefer it, else what becomes JSON."""
    headers = {"Vary": "Accept"}
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) != "text/html":
        return receipt, HTTPStatus.OK, headers
    html = render_template(
        "receipts/receipt.html",
        receipt=receipt,
        product=PRODUCT_NAME,
        style=STYLE,
        money=lambda amount: display(amount, receipt.currency),
        show_time=show_time,
    )
    return Response(html, headers=headers | {"Content-Security-Policy": CSP})
