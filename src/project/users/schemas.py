"""The shapes of accounts and audit events in requests and answers."""

import unicodedata
from typing import Any

from marshmallow import fields
from typing_extensions import override

from project.audit import SORTS as AUDIT_SORTS
from project.list_queries import page_query
from project.schemas import (
    Boolean,
    Choice,
    Email,
    Id,
    Length,
    OutSchema,
    QueryBoolean,
    Schema,
    String,
    Timestamp,
)
from project.security import Role
from project.users.models import SORTS

# The controls of bidirectional text (Unicode TR9 §2) that outlast the text they are in.
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ID = "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"
_TIME = "2030-01-31T12:00:00.000000Z"


class Name(String):
    """A name of 1 to 200 characters, trimmed; in one line, and without signs that turn the text around it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(validate=Length(1, 200), metadata={"example": "Ann"}, **options)

    @override
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs).strip()
        if any(unicodedata.category(char) in {"Cc", "Zl", "Zp"} or char in _TURNING for char in text):
            raise self.make_error("characters")
        return text


class UserOut(OutSchema):
    """An account as its owner, staff and admins see it."""

    id = Id(required=True, metadata={"example": _ID})
    email = fields.String(required=True, metadata={"example": "ann@example.com"})
    name = fields.String(required=True, allow_none=True, metadata={"example": "Ann"})
    role = Choice(Role, required=True, metadata={"example": "user"})
    is_active = Boolean(required=True, metadata={"example": True})
    email_verified = Boolean(required=True, metadata={"example": True})
    created_at = Timestamp(required=True, metadata={"example": _TIME})
    updated_at = Timestamp(required=True, metadata={"example": _TIME})
    last_login_at = Timestamp(required=True, allow_none=True, metadata={"example": _TIME})


class MeUpdate(Schema):
    """What users change about themselves."""

    name = Name(allow_none=True)


class Erase(Schema):
    """The proof that erasing the account is meant."""

    password = String(required=True, validate=Length(max=1024), metadata={"example": "correct horse battery staple"})


class UserCreate(Schema):
    """An account that an admin makes; its owner is invited by mail."""

    email = Email(required=True, metadata={"example": "ben@example.com"})
    name = Name(allow_none=True)
    role = Choice(Role, required=True, metadata={"example": "staff"})


class UserUpdate(Schema):
    """What an admin changes about an account."""

    name = Name(allow_none=True)
    role = Choice(Role, metadata={"example": "staff"})
    is_active = Boolean(metadata={"example": True})


UserQuery = page_query(
    SORTS,
    q=String(validate=Length(1, 200), metadata={"description": "Part of an address or a name."}),
    role=Choice(Role),
    is_active=QueryBoolean(),
    created_after=Timestamp(),
)


class AuditEventOut(OutSchema):
    """One entry of the audit log."""

    id = Id(required=True, metadata={"example": _ID})
    at = Timestamp(required=True, metadata={"example": _TIME})
    action = fields.String(required=True, metadata={"example": "role_changed"})
    actor_id = Id(required=True, allow_none=True, metadata={"example": _ID})
    target_type = fields.String(required=True, allow_none=True, metadata={"example": "user"})
    target_id = Id(required=True, allow_none=True, metadata={"example": _ID})
    ip = fields.String(required=True, allow_none=True, metadata={"example": "203.0.113.7"})
    request_id = fields.String(required=True, allow_none=True, metadata={"example": "5f0c9d7e8b6a4c3d"})
    data = fields.Dict(required=True, keys=fields.String(), metadata={"example": {"role": "staff"}})


AuditQuery = page_query(
    AUDIT_SORTS,
    actor_id=Id(),
    target_id=Id(),
    action=String(validate=Length(1, 64)),
    after=Timestamp(data_key="from", metadata={"description": "From this time on."}),
    before=Timestamp(data_key="to", metadata={"description": "Until before this time."}),
)
