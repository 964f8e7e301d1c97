"""E-mail addresses: the one form in which they are stored and compared."""

import unicodedata

from email_validator import EmailNotValidError, validate_email

MAX_EMAIL_LENGTH = 254  # RFC 5321 §4.5.3.1.3, less the angle brackets


def normalize_email(text: str) -> str | None:
    """Return the stored form of an address, or None when it is not one (see `schemas.Email`)."""
    if len(text) > MAX_EMAIL_LENGTH or unicodedata.normalize("NFKC", text) != text:
        return None
    try:
        # Whether mail can be delivered is found out by sending one; `.test` is as good a name as another here.
        found = validate_email(text, check_deliverability=False, allow_smtputf8=False, test_environment=True)
    except EmailNotValidError:
        return None
    return found.ascii_email.lower() if found.ascii_email else None
