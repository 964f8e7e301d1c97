"""Reads environment variables one at a time, so that each error can name the variable it is about."""

import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from limits import parse_many
from sqlalchemy.exc import ArgumentError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_TYPE = re.compile(r"[a-z0-9.+*-]+/[a-z0-9.+*-]+")
# In every other scheme, such as those of apps and of files, the host may be missing.
_NEED_A_HOST = {"http", "https", "redis", "rediss", "smtp", "smtps"}

T = TypeVar("T")
Network = IPv4Network | IPv6Network


class ConfigError(Exception):
    """A setting is missing or wrong. The text names the variable and never shows its value."""


class Reader:
    """Reads one variable at a time, so that each error can name the variable it is about."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str, default: str = "") -> str:
        """Return the value without surrounding blanks and quotes; an empty one counts as not set."""
        value = self._env.get(name, "").strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1].strip()
        return value or default

    def parse(self, name: str, default: str, convert: Callable[[str], T], expected: str) -> T:
        """Return the converted value, or say what was expected."""
        try:
            return convert(self.text(name, default))
        except (ValueError, KeyError, ArgumentError):
            # Without its cause, which quotes the value.
            raise ConfigError(f"{name} must be {expected}") from None

    def integer(self, name: str, default: int, *, at_least: int = 0, at_most: int = 65535) -> int:
        """Return a whole number within bounds."""
        value = self.parse(name, str(default), int, f"a whole number from {at_least} to {at_most}")
        if not at_least <= value <= at_most:
            raise ConfigError(f"{name} must be a whole number from {at_least} to {at_most}")
        return value

    def flag(self, name: str, default: str = "off") -> bool:
        """Return a switch: on/off, 1/0, true/false, yes/no."""
        value = self.text(name, default).lower()
        if value not in _TRUE | _FALSE:
            raise ConfigError(f"{name} must be on or off")
        return value in _TRUE

    def names(self, name: str, default: str = "") -> list[str]:
        """Return a comma-separated list."""
        return _names(self.text(name, default))

    def origins(self, name: str, default: str) -> list[str]:
        """Return a comma-separated list of web origins as browsers send them; `*` stands for all."""
        return self.parse(name, default, _origins, "origins such as https://app.example.com, separated by commas")

    def limit(self, name: str, default: str) -> str:
        """Return a rate limit in the notation `10/15 minutes`."""
        return self.parse(name, default, _limit, "a limit such as 10/minute")

    def size(self, name: str, default: str) -> int:
        """Return a number of bytes, written as it is or with KiB, MiB or GiB."""
        return self.parse(name, default, _size, "a number of bytes such as 100 MiB")

    def duration(self, name: str, default: str) -> timedelta:
        """Return a span of time, written with s, min, h or d."""
        return self.parse(name, default, parse_duration, "a span of time such as 24 h")

    def types(self, name: str, default: str) -> list[str]:
        """Return a comma-separated list of media types, with `*` as in `image/*`."""
        return self.parse(name, default, _types, "media types such as image/*,application/pdf")

    def networks(self, name: str, default: str) -> list[Network]:
        """Return a comma-separated list of addresses and networks."""
        expected = "addresses or networks such as 10.0.0.0/8, separated by commas"
        return self.parse(name, default, lambda text: [ip_network(item) for item in _names(text)], expected)

    def address(self, name: str) -> tuple[str, int] | None:
        """Return where to listen, as host and port; None when it is not set."""
        if not self.text(name):
            return None
        return self.parse(name, "", _address, "an address such as 127.0.0.1:9101")

    def url(self, name: str, default: str, *schemes: str) -> str:
        """Return an absolute URL without a trailing slash; no scheme named means any."""
        expected = f"a URL ({', '.join(schemes)})" if schemes else "a URL"
        parts = self.parse(name, default, split_url, expected)
        if schemes and parts.scheme not in schemes:
            raise ConfigError(f"{name} must be {expected}")
        value = self.text(name, default)
        return value.rstrip("/") if parts.netloc else value


def make_directory(name: str, path: Path, *, mode: int = 0o700) -> None:
    """Make a directory that files are written to.

    Raises:
        ConfigError: naming the variable that says where.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError:
        raise ConfigError(f"{name} must be where a directory can be made") from None
    if not os.access(path, os.W_OK):
        raise ConfigError(f"{name} must be in a directory that can be written to")


def _names(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or not parts.port or parts.netloc != text or parts.username is not None:
        raise ValueError("not a host and a port")
    return parts.hostname, parts.port


def _origins(text: str) -> list[str]:
    origins = _names(text)
    for origin in origins:
        parts = split_url(origin) if origin != "*" else None
        if parts and origin != f"{parts.scheme}://{parts.netloc}".lower():
            raise ValueError("it has a path or upper-case letters, and would never match")
    return origins


def _size(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,17}) ?(|KiB|MiB|GiB)", text)
    if match is None:
        raise ValueError("not a size")
    size = int(match[1]) * _UNITS[match[2]]
    if size >= 1 << 63:
        raise ValueError("more than a database can count")
    return size


def parse_duration(text: str) -> timedelta:
    """Return a span of time, such as 24 h.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8}) ?(s|min|h|d)", text)
    if match is None:
        raise ValueError("not a span of time")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _types(text: str) -> list[str]:
    types = _names(text.lower())
    if not types or not all(_TYPE.fullmatch(item) for item in types):
        raise ValueError("not media types")
    return types


def _limit(text: str) -> str:
    [item] = parse_many(text)
    if not item.amount:
        raise ValueError("it would let nobody in")
    return text


def split_url(text: str) -> SplitResult:
    """Return the parts of an absolute URL.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(text)
    _ = parts.port  # raises when it is not a number
    lacks_host = parts.scheme in _NEED_A_HOST and not parts.hostname
    if not parts.scheme or lacks_host or len(text.split()) != 1:
        raise ValueError("not an absolute URL")
    return parts
