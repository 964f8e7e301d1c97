"""Reads environment variables one at a time, so that each error can name the variable it is about."""

from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from limits import parse as parse_limit
from sqlalchemy.exc import ArgumentError

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

T = TypeVar("T")


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
        except (ValueError, KeyError, ArgumentError) as error:
            raise ConfigError(f"{name} must be {expected}") from error

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
        return [item.strip() for item in self.text(name, default).split(",") if item.strip()]

    def limit(self, name: str, default: str) -> str:
        """Return a rate limit in the notation `10/15 minutes`."""
        value = self.text(name, default)
        self.parse(name, default, parse_limit, "a limit such as 10/minute")
        return value

    def url(self, name: str, default: str, *schemes: str) -> str:
        """Return an absolute URL without a trailing slash; no scheme named means any."""
        value = self.text(name, default).rstrip("/")
        scheme = self.parse(name, default, lambda text: urlsplit(text).scheme, "a URL")
        if not scheme or (schemes and scheme not in schemes):
            raise ConfigError(f"{name} must be a URL ({', '.join(schemes) or 'with a scheme'})")
        return value
