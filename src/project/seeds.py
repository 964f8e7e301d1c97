"""Demo data for development: made once, through the same services as everything else."""

import secrets

from project.auth.passwords import hash_password
from project.config import settings
from project.database import transaction
from project.security import Role
from project.users import service as users

DEMO_ACCOUNTS = {
    "demo@example.com": ("Demo User", Role.USER),
    "staff@example.com": ("Demo Staff", Role.STAFF),
    "admin@example.com": ("Demo Admin", Role.ADMIN),
}


class SeedRefused(Exception):
    """Demo accounts have no place in production."""


def seed() -> str | None:
    """Create what is missing of the demo data; return the accounts' password if any account was made.

    Raises:
        SeedRefused: in production.
    """
    if settings.production:
        raise SeedRefused("Demo data is not for production; use `flask users create-admin`.")
    missing = [email for email in DEMO_ACCOUNTS if users.find_by_email(email) is None]
    if not missing:
        return None
    password = f"demo-{secrets.token_urlsafe(12)}"
    password_hash = hash_password(password)
    with transaction():  # all or none: the password is shown once
        for email in missing:
            name, role = DEMO_ACCOUNTS[email]
            users.create_user(email=email, name=name, role=role, password_hash=password_hash, email_verified=True)
    return password
