"""Demo data for development: made once, through the same services as everything else."""

import secrets
from io import BytesIO

from PIL import Image, ImageDraw

from project.auth.passwords import hash_password
from project.config import settings
from project.database import transaction
from project.files import service as files
from project.files.models import UploadMethod
from project.files.uploads import Description, upload_raw
from project.security import Role
from project.users import service as users

DEMO_ACCOUNTS = {
    "demo@example.com": ("Demo User", Role.USER),
    "staff@example.com": ("Demo Staff", Role.STAFF),
    "admin@example.com": ("Demo Admin", Role.ADMIN),
}


DEMO_OWNER = "demo@example.com"
PURPOSE = "demo"
# Red, green and blue of a brightness from 0 (the top) to 255 (the horizon).
SKY = (lambda y: 40 + y * 0.82, lambda y: 60 + y * 0.45, lambda y: 140 - y * 0.35)


class SeedRefused(Exception):
    """Demo accounts have no place in production."""


def seed() -> str | None:
    """Create what is missing of the demo data; return the password of the accounts if any was made.

    Raises:
        SeedRefused: in production.
    """
    if settings.production:
        raise SeedRefused("Demo data is not for production; use `flask users create-admin`.")
    password = _seed_accounts()
    _seed_picture()
    return password


def _seed_accounts() -> str | None:
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


def _seed_picture() -> None:
    """Give the demo user a picture, unless there is one."""
    owner = users.find_by_email(DEMO_OWNER)
    if owner is None or files.find_by_purpose(PURPOSE, owner_id=owner.id) is not None:
        return
    described = Description(UploadMethod.RAW, "sunset.png", "image/png", purpose=PURPOSE)
    upload_raw(described, [_sunset()], owner_id=owner.id, length=None)


def _sunset() -> bytes:
    """Paint a picture that is worth a thumbnail: a sky from blue to orange, and the sun."""
    sky = Image.merge("RGB", [Image.linear_gradient("L").point(channel) for channel in SKY]).resize((960, 640))
    ImageDraw.Draw(sky).ellipse((380, 330, 580, 530), fill=(255, 244, 214))
    painted = BytesIO()
    sky.save(painted, "PNG")
    return painted.getvalue()
