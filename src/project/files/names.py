"""Names of files: cleaned when they come in, and written into Content-Disposition when they go out.

A name is for display only. Storage keys are random, so Windows' device names, `:` and trailing dots do no harm here
and stay; whoever saves the file has a browser or system with its own rules for them.
"""

import re
import unicodedata
from urllib.parse import quote

MAX_BYTES = 255
# Longer than any in use. What is longer, or holds blanks, is a part of the name that follows a dot.
MAX_EXTENSION_BYTES = 20
NAMELESS = "file"

# Controls, formats (zero-width, bidirectional), surrogates, which UTF-8 cannot hold, and breaks of lines and
# paragraphs. With the formats goes the joiner, so a family emoji falls apart into persons.
_UNWANTED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Letters and marks that show nothing, and the noncharacters of Unicode (its chapter 23.7).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
# RFC 6266 appendix D: what clients unescape differently. A slash can come from decomposing a letter (℀).
_MISREAD = re.compile(r'["\\%/]')
# RFC 8187 §3.2.1: attr-char, besides letters and digits.
_ATTR_CHARS = "!#$&+-.^_`|~"


def clean_filename(name: str) -> str:
    """Return a name that is safe to show: NFC, no folders, nothing invisible, at most 255 bytes of UTF-8.

    Any name is accepted; one of which nothing is left becomes "file". Too long a name keeps its extension. Cleaning
    a clean name changes nothing.
    """
    name = name[max(name.rfind("/"), name.rfind("\\")) + 1 :]
    name = "".join(char for char in name if unicodedata.category(char) not in _UNWANTED)
    name = _INVISIBLE.sub("", name)
    # Normalising takes time that grows with the square of a run of marks. It makes at most four characters one, so
    # what is cut here would be cut below.
    name = name[: 4 * MAX_BYTES] + name[max(4 * MAX_BYTES, len(name) - MAX_BYTES) :]
    name = _shorten(unicodedata.normalize("NFC", name).strip()).strip()
    return name if name.strip(". ") else NAMELESS


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not extension.isalnum() or len(extension.encode()) >= MAX_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""
    return _cut(stem, MAX_BYTES - len((dot + extension).encode())) + dot + extension


def _cut(text: str, size: int) -> str:
    kept = text.encode()[:size].decode(errors="ignore")
    if not _is_mark(text[len(kept) :][:1]):
        return kept
    # The next character is a mark on the last letter: that letter goes too, rather than lose its accents.
    letter = len(kept) - 1
    while letter > 0 and _is_mark(kept[letter]):
        letter -= 1
    return kept[:letter]


def _is_mark(char: str) -> bool:
    return char != "" and unicodedata.category(char).startswith("M")


def content_disposition(disposition: str, filename: str) -> str:
    """Return the header's value (RFC 6266): `inline` or `attachment` and the name, in ASCII and on one line.

    A name that is not plain ASCII comes twice: readable in ASCII, and exactly (RFC 8187).
    """
    # A stored name is clean already; cleaning it here makes the header safe whatever it is called with.
    name = clean_filename(filename)
    fallback = _ascii(name)
    value = f'{disposition}; filename="{fallback}"'
    return value if fallback == name else f"{value}; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"


def _ascii(name: str) -> str:
    letters = (char for char in unicodedata.normalize("NFKD", name) if not _is_mark(char))
    # Decomposed, a letter can become a blank or dots: hence cleaned again.
    return clean_filename(_MISREAD.sub("_", "".join(char if " " <= char <= "~" else "_" for char in letters)))
