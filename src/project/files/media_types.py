"""Media types: what a client declared, what the bytes are, what is allowed, and what a browser may show."""

import codecs
import re
from collections.abc import Sequence

import filetype  # type: ignore[import-untyped]

HEAD_SIZE = 4096  # in bytes: what is looked at of a file
OCTET_STREAM = "application/octet-stream"

# RFC 6838 §4.2. Its names are narrower than the tokens of HTTP, which may hold `*`.
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
# Also in the OpenAPI document.
DECLARED = rf"^[ \t]*({_NAME}/{_NAME})[ \t]*(;.*)?$"

# Types without a signature. All are harmless as long as nothing takes them for HTML.
_TEXTS = frozenset({"text/plain", "text/csv", "text/markdown", "application/json"})
# The "binary data bytes" of WHATWG's MIME Sniffing Standard, §3.
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_BLANKS = "\ufeff \t\r\n\f"
# What a text must not begin with: markup, and the formats that need no binary byte in their first 4 KiB. Other
# signatures that `filetype` knows are as short as two letters, and a text may well begin with them (BMI, GIFT, MZ).
_NOT_TEXT = ("<", "GIF87a", "GIF89a", "%PDF", "%!PS", r"{\rtf")

# An animated PNG is a PNG; the others have lost their x- (RFC 2361 and RFC 9639 name them).
_NAMES = {"image/apng": "image/png", "audio/x-wav": "audio/wav", "audio/x-flac": "audio/flac"}

# No PDF, SVG or HTML: they can hold scripts.
_INLINE = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/gif",
        "image/webp",
        "image/avif",
        "video/mp4",
        "video/webm",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "text/plain",
    }
)


def parse_declared(header: str | None) -> str | None:
    """Return the type of a Content-Type header in lower case, without parameters; None if missing or malformed."""
    match = re.fullmatch(DECLARED, header or "")
    return match[1].lower() if match else None


def effective_type(head: bytes, declared: str) -> str:
    """Return the type a file is stored and served as, from its first HEAD_SIZE bytes and what was declared.

    Declared texts that are texts are believed; otherwise it is what the bytes are recognised as, or
    application/octet-stream. It is never a type that a browser would execute.
    """
    head = head[:HEAD_SIZE]
    if declared in _TEXTS and _is_text(head):
        return declared
    recognised: str | None = filetype.guess_mime(head)
    return _NAMES.get(recognised or OCTET_STREAM, recognised or OCTET_STREAM)


def _is_text(head: bytes) -> bool:
    # The last character of a full head may be cut.
    complete = len(head) < HEAD_SIZE
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=complete)
    except UnicodeDecodeError:
        return False
    return not _BINARY.search(head) and not text.lstrip(_BLANKS).startswith(_NOT_TEXT)


def is_allowed(content_type: str, patterns: Sequence[str]) -> bool:
    """Tell whether one of the patterns, such as `image/*`, covers the type; `*` is the only wildcard."""
    globs = (re.escape(pattern).replace(r"\*", ".*") for pattern in patterns)
    return any(re.fullmatch(glob, content_type, re.IGNORECASE) for glob in globs)


def may_inline(content_type: str) -> bool:
    """Tell whether a browser may show the type in its window. All else is saved, whatever was asked for."""
    return content_type in _INLINE


def served_type(content_type: str) -> str:
    """Return the value of the Content-Type header. A text is UTF-8: otherwise it would not be stored as one."""
    return f"{content_type}; charset=utf-8" if content_type.startswith("text/") else content_type
