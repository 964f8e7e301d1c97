"""What no log line may hold: card numbers, secrets and e-mail addresses."""

import re

import pytest

# Of the factories and of the tests over HTTP, and what all their signing keys end with.
_PASSWORDS = (
    "correct horse battery staple",
    "plenty of unrelated words",
    "tulip anvil grape lantern",
    "tests that is long enough",
)
PATTERNS = {
    "an e-mail address": re.compile(r"[\w.+%-]+@[\w-]+\.[\w.-]*\w", re.ASCII),
    "a client secret": re.compile(r"_secret_\w", re.ASCII),
    "a webhook secret": re.compile(r"whsec_\w", re.ASCII),
    "a key of the provider": re.compile(r"(?<![A-Za-z0-9])[sr]k_(?:test|live|sandbox)", re.ASCII),
    "a token": re.compile(r"eyJ[\w-]{8,}\.|Bearer [\w-]{8}", re.ASCII),
    "a password": re.compile("|".join([*_PASSWORDS, r"\$argon2"]), re.ASCII),
}
# A cheap look first: without any of these there is nothing to find.
_MARKS = ("@", "_secret_", "whsec_", "k_test", "k_live", "k_sandbox", "eyJ", "Bearer ", "$argon2", *_PASSWORDS)
_LONG_NUMBER = re.compile(r"\d{13}|\d{4}([ -])\d{4,6}\1\d{4}", re.ASCII)
# Numbers as they are on cards; what begins or ends within a word, an id, a time or a fraction is none.
_NUMBER = re.compile(
    r"(?<![\w.:-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{5})(?![\w.:-])",
    re.ASCII,
)
# The lines of source in a traceback through a test: what stands there is nobody's.
_TEST_SOURCE = re.compile(
    r'(  File \\?"[^"]*/tests/[^"]*\\?", line \d+, in [^\\\n]+)(?:(?:\\n|\n)    (?:(?!\\n)[^\n])*)+'
)


def leaks(text: str) -> list[str]:
    """Name what a log line, or several, must not hold."""
    if not _LONG_NUMBER.search(text) and not any(mark in text for mark in _MARKS):
        return []
    text = _TEST_SOURCE.sub(r"\1", text)
    found = [name for name, pattern in PATTERNS.items() if pattern.search(text)]
    if any(_is_card_number(match[0]) for match in _NUMBER.finditer(text)):
        found.append("a card number")
    return found


def _is_card_number(text: str) -> bool:
    """Check the last digit (ISO/IEC 7812-1, annex B), with which nine of ten numbers that are none fall out."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    return (sum(digits[0::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


# What a process logs begins so, in production and in a terminal; the rest is printed for whoever started it.
_LOGGED = re.compile(r"\{|\[?\d{4}-\d\d-\d\d[T ]", re.ASCII)


def check_lines(output: str) -> None:
    """Fail if a process has logged a line that leaks."""
    fail(
        [
            f"{', '.join(names)}: {line}"
            for line in output.splitlines()
            if _LOGGED.match(line) and (names := leaks(line))
        ]
    )


def fail(found: list[str]) -> None:
    if found:
        pytest.fail("a log line holds " + "\n".join(found), pytrace=False)
