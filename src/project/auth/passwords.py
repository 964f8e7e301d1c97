"""Passwords: the policy, and Argon2id with a bound on how many run at once."""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn import zxcvbn

from project.errors import Invalid, Unavailable, field_code

MIN_LENGTH = 12
MAX_LENGTH = 256  # code points, so at most 1024 bytes
PRODUCT_NAME = "project"

TOO_SHORT = field_code("password_too_short", "The password is too short.", f"Use at least {MIN_LENGTH} characters.")
TOO_LONG = field_code("password_too_long", "The password is too long.", f"Use at most {MAX_LENGTH} characters.")
TOO_COMMON = field_code(
    "password_too_common",
    "The password is easy to guess.",
    "Use a few unrelated words, without your address.",
)

# OWASP's second recommendation: 19 MiB, two passes, one lane. Measured: about 35 ms on one core.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# Verified when there is no account or no password, so that a refusal costs the same whatever its cause.
_DUMMY_HASH = _hasher.hash("a password that nobody has")

# zxcvbn's score 0 or 1: found within a million guesses.
_GUESSABLE_LOG10 = 6.0
# Its time grows with the length and with the signs that may stand for letters: 0.7 s for 72 characters full of
# them, 0.1 s within these bounds. What is common is neither longer nor that varied.
_EXAMINED_LENGTH = 32
_MANY_SIGNS = 6

# Each hash takes a core and 19 MiB, so a process makes one at a time; there are as many processes as cores. Some more
# may wait; the rest are told to come back, so that a storm of sign-ins leaves threads for everybody else.
MAX_ADMITTED = 10
_admitted = threading.BoundedSemaphore(MAX_ADMITTED)
_has_place: ContextVar[bool] = ContextVar("has_place", default=False)
# Whoever only reads goes first: beside others the thread gets a tenth of a core, and all that they leave.
NICENESS = 10


@contextmanager
def hashing() -> Iterator[None]:
    """Hold a place among the hashes. Around more than one step, so that the last cannot fail for want of a place.

    Raises:
        Unavailable: too many are waiting already.
    """
    if _has_place.get():
        yield
        return
    if not _admitted.acquire(blocking=False):
        raise Unavailable("Too many people are signing in at this moment.", retry_after=1)
    token = _has_place.set(True)
    try:
        yield
    finally:
        _has_place.reset(token)
        _admitted.release()


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere only whole processes are nice
        with suppress(OSError):  # forbidden
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


_hashes = ThreadPoolExecutor(1, "hashes", initializer=_step_back)


def check_policy(password: str, *, pointer: str, email: str = "") -> None:
    """Refuse a new password that is too short, too long or guessable; there are no composition rules.

    Passwords are taken exactly as sent (ASVS 6.2.8): no normalisation, no trimming; length is in code points.

    Raises:
        Invalid: with the code at `pointer`.
    """
    code = _refusal(password, email)
    if code is not None:
        raise Invalid.field(pointer, code)


def _refusal(password: str, email: str) -> str | None:
    if len(password) < MIN_LENGTH:
        return TOO_SHORT
    if len(password) > MAX_LENGTH:
        return TOO_LONG
    return TOO_COMMON if _is_guessable(password, email) else None


def _is_guessable(password: str, email: str) -> bool:
    local_part, _, domain = email.partition("@")
    if len({char for char in password if not char.isalnum()}) >= _MANY_SIGNS:
        return False
    own_words = [word for word in (PRODUCT_NAME, email, local_part, domain.partition(".")[0]) if word]
    result = zxcvbn(password[:_EXAMINED_LENGTH], user_inputs=own_words)
    if float(result["guesses_log10"]) >= _GUESSABLE_LOG10:
        return False
    # Repeated spaces or emoji score low too, yet stand on nobody's list: a pattern must have a letter or digit.
    patterns = [match["token"] for match in result["sequence"] if str(match["pattern"]) != "bruteforce"]
    return len(set(password)) == 1 or any(char.isalnum() for token in patterns for char in token)


def hash_password(password: str) -> str:
    """Return the Argon2id hash of a password.

    Raises:
        Unavailable: too many hashes are waiting already.
    """
    with hashing():
        return _hashes.submit(_hasher.hash, password).result()


def verify_password(password: str, password_hash: str | None) -> bool:
    """Tell whether the password fits; always exactly one Argon2 run, also when there is no hash.

    Raises:
        Unavailable: too many hashes are waiting already.
    """
    with hashing():
        try:
            _hashes.submit(_hasher.verify, password_hash or _DUMMY_HASH, password).result()
        except (VerificationError, InvalidHashError):
            return False
    return bool(password_hash)


def needs_rehash(password_hash: str) -> bool:
    """Tell whether a hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)
