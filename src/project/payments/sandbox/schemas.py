"""The shapes of the sandbox's own operations."""

import re
from typing import Any
from urllib.parse import urlsplit

from marshmallow import fields
from typing_extensions import override

from project.environment import split_url
from project.payments.sandbox.faults import Fault
from project.schemas import Choice, Integer, Length, OneOf, OutSchema, Range, Schema, String

_SECRET = "pi_sbx_0190f8e25a3b7c4d_secret_5f0c9d7e8b6a4c3d"  # noqa: S105 - an example  # nosec B105
# A customer is sent there: these would run in the page that sends.
_RUNNING = {"javascript", "data", "vbscript", "blob", "file", "about"}
# It becomes a header: no end of line, and nothing else that a parser before us may have stripped.
_VISIBLE = re.compile(r"[\x21-\x7e]+")


class ReturnUrl(String):
    """Where a customer is sent afterwards: an absolute URL of the web, or of an app."""

    default_error_messages = {  # noqa: RUF012 - marshmallow merges this attribute of the classes
        "format": "This must be an absolute URL, such as https://shop.example.com/thanks.",
    }

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        url = super()._deserialize(value, attr, data, **kwargs)
        try:
            split_url(url)
        except ValueError as error:
            raise self.make_error("format") from error
        if urlsplit(url).scheme.lower() in _RUNNING or not _VISIBLE.fullmatch(url):
            raise self.make_error("format")
        return url


class PaymentMethodOut(OutSchema):
    """A payment method that behaves as its description says, whoever pays with it."""

    name = fields.String(required=True, metadata={"example": "pm_card_visa"})
    type = fields.String(required=True, metadata={"example": "card"})
    description = fields.String(required=True, metadata={"example": "Succeeds."})


class Confirm(Schema):
    """An attempt to pay, as the customer's browser makes it."""

    client_secret = String(required=True, validate=Length(1, 255), metadata={"example": _SECRET})
    payment_method = String(required=True, validate=Length(1, 64), metadata={"example": "pm_card_visa"})
    return_url = ReturnUrl(
        allow_none=True, validate=Length(1, 2000), metadata={"example": "http://localhost:5173/thanks"}
    )


class PageQuery(Schema):
    """Which payment the page for approval is about."""

    client_secret = String(required=True, validate=Length(1, 255), metadata={"example": _SECRET})


class Authenticate(PageQuery):
    """What the customer answers the bank."""

    outcome = String(required=True, validate=OneOf(["approve", "fail"]), metadata={"example": "approve"})


class OutcomeOut(OutSchema):
    """How far the payment is; `next_action` says where the customer has to approve it."""

    status = fields.String(required=True, metadata={"example": "requires_action"})
    next_action = fields.Dict(
        required=True,
        allow_none=True,
        metadata={
            "example": {
                "type": "redirect_to_url",
                "redirect_to_url": {"url": "http://localhost:8000/v1/sandbox/…", "return_url": None},
            }
        },
    )


class FaultSet(Schema):
    """What is to go wrong the next times; 0 ends it."""

    fault = Choice(Fault, required=True, metadata={"example": "timeout_after"})
    count = Integer(required=True, validate=Range(0, 1000), metadata={"example": 1})


class AdvancedOut(OutSchema):
    """How many webhooks were delivered."""

    delivered = Integer(required=True, metadata={"example": 2})
