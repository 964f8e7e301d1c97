"""Rate limits: the classes a route can belong to, budgets that services spend, and the headers that report them."""

import ipaddress
import logging
import math
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import NamedTuple, ParamSpec, TypeVar, cast

from flask import Flask, Response, current_app, g, request
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter

from project import metrics
from project.config import settings
from project.errors import RateLimited
from project.extensions import STRATEGY, limiter
from project.marks import mark
from project.security import TokenKind, find_claims

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Redis tells the end of a window to the nearest second; who waits as long as Retry-After says must get through.
ROUNDING = 0.5  # seconds

# For so long nobody looks again for a Redis that was away.
RETRY_SECONDS = 1.0


class _Applied(NamedTuple):
    """The limit that a request was counted against: its public name, what is left, and when it is full again."""

    name: str
    item: RateLimitItem
    left: int
    reset: float


def network(ip: str | None, *, ipv4_bits: int = 24) -> str:
    """Return the network an address belongs to: /24 for IPv4, /64 for IPv6, the usual size of one customer.

    What is no address, such as the name of a Unix socket's peer, stands for itself.
    """
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return ip or ""
    # A server that listens on IPv6 sees clients of IPv4 like this, and all of them would be one network.
    address = getattr(address, "ipv4_mapped", None) or address
    bits = ipv4_bits if address.version == 4 else 64
    return str(ipaddress.ip_network((address.packed, bits), strict=False))


def _address() -> str:
    # One IPv6 customer has 2^64 addresses, so single ones cannot be counted; those of IPv4 are scarce.
    return f"address:{network(request.remote_addr, ipv4_bits=32)}"


def _caller() -> str:
    claims = find_claims()
    if claims is None:
        return _address()
    # No session was looked at yet. A refresh token lives for weeks, and once stolen and revoked it must not be
    # able to spend what its owner has.
    is_access = claims.kind is TokenKind.ACCESS
    return f"user:{claims.user_id}" if is_access else f"session:{claims.session_id}"


def limit(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Count a route against one of the limits in the settings; stands directly under the verb.

    `read`, `write` and `download` are per user over all routes of the class (per session with a refresh token, per
    address without a good token), `anonymous` is per address and route. Refusals count as well, since this runs before
    authentication.

    The route raises RateLimited when nothing is left.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            if settings.rate_limits:
                _count_request(name)
            return view(*args, **kwargs)

        return mark(counted, limit=name)

    return decorate


def _count_request(name: str) -> None:
    item = _item(name)
    is_per_route = name == "anonymous"
    scope = str(request.endpoint) if is_per_route else name
    key = item.key_for(STRATEGY, scope, _address() if is_per_route else _caller())
    counter = _counter()
    used = counter.use(lambda strategy: strategy.storage.incr(key, item.get_expiry()))
    reset = counter.use(lambda strategy: strategy.storage.get_expiry(key))
    g.limit = _Applied(scope, item, max(0, item.amount - used), reset)
    if used > item.amount:
        raise RateLimited(headers={"Retry-After": str(_seconds_until(reset + ROUNDING))})


def spend(name: str, *key: str) -> None:
    """Take one from a budget of the settings, in a service.

    Raises:
        RateLimited: the budget is spent; Retry-After says for how many seconds.
    """
    if settings.rate_limits and not _counter().use(lambda strategy: strategy.hit(_item(name), STRATEGY, name, *key)):
        reset = _counter().use(lambda strategy: strategy.get_window_stats(_item(name), STRATEGY, name, *key)).reset_time
        raise RateLimited(headers={"Retry-After": str(_seconds_until(reset + ROUNDING))})


def has_room(name: str, *key: str) -> bool:
    """Tell whether something is left of a budget, and take nothing."""
    return not settings.rate_limits or bool(
        _counter().use(lambda strategy: strategy.test(_item(name), STRATEGY, name, *key))
    )


def count(name: str, *key: str) -> None:
    """Take one from a budget for what has been done already."""
    if settings.rate_limits:
        _counter().use(lambda strategy: strategy.hit(_item(name), STRATEGY, name, *key))


def refill(name: str, *key: str) -> None:
    """Give a budget back after success."""
    if settings.rate_limits:
        _counter().use(lambda strategy: strategy.clear(_item(name), STRATEGY, name, *key))


def _item(name: str) -> RateLimitItem:
    return _parsed(getattr(settings.limits, name))


_parsed = cache(parse)


class _Counter:
    """Where an application counts: in Redis, or with the same numbers in this process while Redis is away."""

    def __init__(self) -> None:
        self._fallback = FixedWindowRateLimiter(MemoryStorage())
        self._away_until = 0.0

    def use(self, count: Callable[[RateLimiter], T]) -> T:
        """Count with what is there."""
        now = time.monotonic()
        if now >= self._away_until:
            if self._away_until:
                self._away_until = now + RETRY_SECONDS  # one looks whether Redis is back; the others need not wait
            try:
                result = count(limiter.limiter)
            except StorageError:
                self._away_until = time.monotonic() + RETRY_SECONDS
                logger.warning("rate_limit_storage_unavailable")
            else:
                self._away_until = 0.0
                return result
        metrics.LIMITS_UNSHARED.inc()
        return count(self._fallback)


def _counter() -> _Counter:
    return cast(_Counter, current_app.extensions["rate_limits"])


def _seconds_until(moment: float) -> int:
    return max(1, math.ceil(moment - time.time()))


def _report(response: Response) -> Response:
    """Send RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers) for the limit that was applied."""
    applied: _Applied | None = g.get("limit")
    if applied is not None:
        name, item, left, reset = applied
        response.headers["RateLimit-Policy"] = f'"{name}";q={item.amount};w={item.get_expiry()}'
        response.headers["RateLimit"] = f'"{name}";r={left};t={_seconds_until(reset)}'
    return response


def init_app(app: Flask) -> None:
    """Attach the limiter; its storage is Redis when set, the process's memory otherwise."""
    limiter.init_app(app)
    app.extensions["rate_limits"] = _Counter()
    app.after_request(_report)
