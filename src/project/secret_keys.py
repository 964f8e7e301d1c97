"""The secrets among the settings: checked for strength, and generated where none is required."""

import os
import re
import secrets
from pathlib import Path

from project.environment import ConfigError, Reader, make_directory

MIN_SECRET_BYTES = 32
MIN_DIFFERENT_CHARACTERS = 8
# What examples say where a secret belongs; nobody should have started with it.
PLACEHOLDER = re.compile(r"change.?me|replace.?(me|this)|your.?(own|secret|key)|placeholder|example", re.IGNORECASE)


def read_secret_key(read: Reader, data_dir: Path, *, required: bool) -> str:
    """Return SECRET_KEY, from which the keys of cursors and signed links are derived.

    Raises:
        ConfigError: it is weak, or missing although required.
    """
    value = read.text("SECRET_KEY")
    if not value and not required:
        value = _generated(data_dir / "secret_key")
    return _strong("SECRET_KEY", value)


def read_jwt_keys(read: Reader, data_dir: Path, *, required: bool) -> dict[str, str]:
    """Return the keys of JWT_SECRET_KEYS by their `kid`; the first signs.

    Raises:
        ConfigError: one is weak or there twice, or there is none although required.
    """
    value = read.text("JWT_SECRET_KEYS")
    if not value and not required:
        value = f"dev:{_generated(data_dir / 'jwt_secret_key')}"
    pairs = [[part.strip() for part in item.split(":", 1)] for item in value.split(",")]
    if value and not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ConfigError("JWT_SECRET_KEYS must be keys written kid:secret, separated by commas")
    keys = {pair[0]: _strong("JWT_SECRET_KEYS", pair[-1]) for pair in pairs}
    if not len(set(keys.values())) == len(keys) == len(pairs):
        raise ConfigError("JWT_SECRET_KEYS must not have a kid or a secret twice")
    return keys


def _strong(name: str, value: str) -> str:
    if not value:
        raise ConfigError(f"{name} is required")
    if len(value.encode()) < MIN_SECRET_BYTES or len(set(value)) < MIN_DIFFERENT_CHARACTERS:
        raise ConfigError(f"{name} needs secrets of at least {MIN_SECRET_BYTES} random bytes")
    if PLACEHOLDER.search(value):
        raise ConfigError(f"{name} still has the value of an example")
    return value


def _generated(path: Path) -> str:
    """Return the development secret kept at `path`, made once even if two processes start together."""
    make_directory("DATA_DIR", path.parent)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48))
        try:
            # A hard link fails when the name is taken, so the first one wins and the file is never half written.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
