"""Rate limits: the classes a route can belong to, budgets that services spend, and the headers that report them."""

import ipaddress
import logging
import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from flask import Flask, Response, request
from flask_limiter import RequestLimit
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter

from project import metrics
from project.config import settings
from project.errors import RateLimited
from project.extensions import limiter
from project.marks import mark
from project.security import TokenKind, find_claims

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Redis tells the end of a window to the nearest second; who waits as long as Retry-After says must get through.
ROUNDING = 0.5  # seconds

# What services spend from while Redis is away: the same numbers, counted in this process.
_fallback = FixedWindowRateLimiter(MemoryStorage())


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
    """

    def value() -> str:
        return cast(str, getattr(settings.limits, name))

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        if name == "anonymous":
            limited = limiter.limit(value, key_func=_address)(view)
        else:
            limited = limiter.shared_limit(value, name, key_func=_caller)(view)

        @wraps(limited)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return limited(*args, **kwargs)
            except StorageError:
                # Of several requests that find Redis away at once, the limiter lets only the first count in memory.
                return limited(*args, **kwargs)

        return mark(counted, limit=name)

    return decorate


def spend(name: str, *key: str) -> None:
    """Take one from a budget of the settings, in a service.

    Raises:
        RateLimited: the budget is spent; Retry-After says for how many seconds.
    """
    if settings.rate_limits and not _counted(lambda strategy: strategy.hit(_item(name), name, *key)):
        reset = _counted(lambda strategy: strategy.get_window_stats(_item(name), name, *key)).reset_time
        raise RateLimited(headers={"Retry-After": str(_seconds_until(reset + ROUNDING))})


def has_room(name: str, *key: str) -> bool:
    """Tell whether something is left of a budget, and take nothing."""
    return not settings.rate_limits or bool(_counted(lambda strategy: strategy.test(_item(name), name, *key)))


def count(name: str, *key: str) -> None:
    """Take one from a budget for what has been done already."""
    if settings.rate_limits:
        _counted(lambda strategy: strategy.hit(_item(name), name, *key))


def refill(name: str, *key: str) -> None:
    """Give a budget back after success."""
    if settings.rate_limits:
        _counted(lambda strategy: strategy.clear(_item(name), name, *key))


def _item(name: str) -> RateLimitItem:
    return parse(getattr(settings.limits, name))


def _counted(use: Callable[[RateLimiter], Any]) -> Any:
    try:
        return use(limiter.limiter)
    except StorageError:
        metrics.LIMITS_UNSHARED.inc()
        logger.warning("rate_limit_storage_unavailable")
        return use(_fallback)


def _seconds_until(moment: float) -> int:
    return max(1, math.ceil(moment - time.time()))


def _report(response: Response) -> Response:
    """Send RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers) for each limit."""
    applied = [(limit.request_args[-1], limit) for limit in limiter.current_limits]
    try:
        _add_headers(response, applied)
    except StorageError:
        logger.warning("rate_limit_storage_unavailable")
    return response


def _add_headers(response: Response, applied: list[tuple[str, RequestLimit]]) -> None:
    if not applied:
        return
    policies = [f'"{name}";q={item.limit.amount};w={item.limit.get_expiry()}' for name, item in applied]
    states = [f'"{name}";r={item.remaining};t={_seconds_until(item.window[0])}' for name, item in applied]
    response.headers["RateLimit-Policy"] = ", ".join(policies)
    response.headers["RateLimit"] = ", ".join(states)
    if response.status_code == RateLimited.status and "Retry-After" not in response.headers:
        waits = [_seconds_until(item.window[0] + ROUNDING) for _, item in applied if item.breached]
        response.headers["Retry-After"] = str(max(waits, default=1))


def init_app(app: Flask) -> None:
    """Attach the limiter; its storage is Redis when set, the process's memory otherwise."""
    limiter.init_app(app)
    app.after_request(_report)
