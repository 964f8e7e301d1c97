"""The shapes of registration, sign-in, sessions and credentials."""

from marshmallow import fields

from project.auth.models import SESSION_SORTS
from project.list_queries import page_query
from project.schemas import Boolean, Email, Id, Length, OutSchema, QueryBoolean, Schema, String, Timestamp
from project.users.schemas import Name, UserOut

_EMAIL = {"example": "ann@example.com"}
_PASSWORD = {"example": "correct horse battery staple"}
_LINK_TOKEN = {"example": "Zm9yIHlvdXIgZXllcyBvbmx5IC0gb25lIHRpbWUgbGluaw"}
_JWT = {"example": "eyJhbGciOiJIUzI1NiIsImtpZCI6ImsxIiwidHlwIjoiSldUIn0.eyJzdWIiOiIwMTkwIn0.c2lnbmF0dXJl"}
_ID = {"example": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f"}
_TIME = {"example": "2030-01-31T12:00:00.000000Z"}


def _given_password() -> String:
    # Longer than any stored one, and far from worth hashing.
    return String(required=True, validate=Length(max=1024), metadata=_PASSWORD)


def _new_password() -> String:
    # The policy has codes of its own (passwords.check_policy).
    return String(required=True, metadata=_PASSWORD)


class Registration(Schema):
    """A new account."""

    email = Email(required=True, metadata=_EMAIL)
    password = _new_password()
    name = Name(allow_none=True)


class Credentials(Schema):
    """What signs an account in."""

    email = Email(required=True, metadata=_EMAIL)
    password = _given_password()


class EmailOnly(Schema):
    """An address that mail is asked for."""

    email = Email(required=True, metadata=_EMAIL)


class LinkToken(Schema):
    """The token of a mailed link, from behind its `#token=`."""

    token = String(required=True, validate=Length(1, 200), metadata=_LINK_TOKEN)


class PasswordReset(LinkToken):
    """A new password, authorised by a mailed link."""

    password = _new_password()


class PasswordChange(Schema):
    """A new password, authorised by the current one."""

    current_password = _given_password()
    new_password = _new_password()


class EmailChange(Schema):
    """A new address, authorised by the password."""

    new_email = Email(required=True, metadata={"example": "ann@example.org"})
    password = _given_password()


class TokensOut(OutSchema):
    """The answer of login and refresh."""

    access_token = fields.String(required=True, metadata=_JWT)
    refresh_token = fields.String(required=True, metadata=_JWT)
    token_type = fields.String(required=True, metadata={"example": "Bearer"})
    expires_in = fields.Integer(required=True, metadata={"example": 600, "description": "Seconds."})
    user = fields.Nested(UserOut, required=True)


class SessionOut(OutSchema):
    """One signed-in device."""

    id = Id(required=True, metadata=_ID)
    created_at = Timestamp(required=True, metadata=_TIME)
    last_used_at = Timestamp(required=True, metadata={**_TIME, "description": "The last refresh."})
    ip = fields.String(required=True, allow_none=True, metadata={"example": "203.0.113.7"})
    user_agent = fields.String(required=True, allow_none=True, metadata={"example": "Mozilla/5.0"})
    current = Boolean(required=True, metadata={"example": True})


SessionQuery = page_query(SESSION_SORTS)


class EndSessionsQuery(Schema):
    """Which sessions to end."""

    others = QueryBoolean(load_default=False, metadata={"description": "Keep the session of this request."})
