import time

import pytest
from filetype.types import TYPES  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from project.files.media_types import (
    HEAD_SIZE,
    effective_type,
    is_allowed,
    may_inline,
    parse_declared,
    served_type,
)
from tests.files.samples import POLYGLOTS

# What a browser would execute or render as a document; RFC 9239 lists the names of JavaScript.
ACTIVE = {"text/html", "text/xml", "application/xml", "text/xsl", "application/xslt+xml", "message/rfc822"}
ACTIVE |= {f"{top}/{name}script" for top in ("text", "application") for name in ("java", "ecma", "live", "j", "vb")}
ACTIVE |= {f"{top}/x-{name}script" for top in ("text", "application") for name in ("java", "ecma")}


def is_active(content_type: str) -> bool:
    return content_type in ACTIVE or content_type.endswith("+xml")


@pytest.mark.parametrize(
    ("header", "declared"),
    [
        ("image/png", "image/png"),
        ("Image/PNG; charset=x", "image/png"),
        (" text/plain ;charset=utf-8", "text/plain"),
        ("application/vnd.api+json;", "application/vnd.api+json"),
        ("a" * 127 + "/" + "b" * 127, "a" * 127 + "/" + "b" * 127),
        (None, None),
        ("", None),
        ("png", None),
        ("image/", None),
        ("/png", None),
        ("image/*", None),
        ("*/*", None),
        ("image/png, text/html", None),
        ("image/png text/html", None),
        ("image /png", None),
        ("image/png\r\nX-Evil: 1", None),
        ("image/png; a=1\r\nX-Evil: 1", None),
        ("image/pñg", None),
        ("a" * 128 + "/b", None),
        ("a/" + "b" * 10_000, None),
    ],
)
def test_the_declared_type_is_read_from_the_header(header, declared):
    assert parse_declared(header) == declared


@pytest.mark.parametrize("sample", POLYGLOTS, ids=lambda sample: sample.name)
def test_a_file_gets_the_type_of_its_bytes(sample):
    assert effective_type(sample.content[:HEAD_SIZE], sample.declared) == sample.effective


@pytest.mark.parametrize("sample", POLYGLOTS, ids=lambda sample: sample.name)
def test_no_declaration_makes_a_polyglot_active(sample):
    declarations = {other.declared for other in POLYGLOTS} | ACTIVE
    effective = {effective_type(sample.content[:HEAD_SIZE], declared) for declared in declarations}

    assert not any(is_active(content_type) for content_type in effective)


@pytest.mark.parametrize("declared", ["text/plain", "text/csv", "text/markdown", "application/json"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "{}",
        "a,b\r\n1,2\f\n",
        "\ufeffGrüße\n",
        "\x1b[1mbold\x1b[0m",
        "1 < 2",
        "GIFT ideas",
        "MZ",
        "SQLite?",
        "%!TEX",
    ],
)
def test_a_declared_text_that_is_one_is_believed(declared, text):
    assert effective_type(text.encode(), declared) == declared


@pytest.mark.parametrize(
    "head", [b"x\0", b"\x01", b"\x7fELF\x02", "Grüße".encode("latin-1"), "x".encode("utf-16"), b" <"]
)
def test_a_declared_text_that_is_none_is_not_believed(head):
    assert effective_type(head, "text/plain") == "application/octet-stream"


def test_the_last_letter_of_a_head_may_be_cut():
    text = "x" * (HEAD_SIZE - 1) + "é"
    assert effective_type(text.encode(), "text/plain") == "text/plain"
    assert effective_type(text.encode()[:HEAD_SIZE], "text/plain") == "text/plain"


def test_other_texts_are_not_believed():
    assert effective_type(b"a { color: red }", "text/css") == "application/octet-stream"


def test_no_type_that_is_recognised_is_active():
    # A new version of filetype may know more; these would be served as what they are.
    assert not any(is_active(kind.mime) or kind.mime.startswith("text/") for kind in TYPES)


@given(st.binary(max_size=HEAD_SIZE), st.sampled_from(sorted(ACTIVE)) | st.text())
def test_no_file_is_active_whatever_is_declared(head, declared):
    assert not is_active(effective_type(head, declared))


# Every signature that filetype knows lies in the first of these or behind the box, the archive, the frames.
starts = st.sampled_from(
    [sample.content[:600] for sample in POLYGLOTS] + [b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"PK\x03\x04"]
)


@given(starts, st.integers(0, 600), st.binary(max_size=HEAD_SIZE), st.integers(1, 200))
def test_recognising_never_fails_and_is_fast(start, cut, rest, times):
    head = (start[:cut] + rest * times)[:HEAD_SIZE]
    started = time.process_time()

    effective_type(head, "image/png")

    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("content_type", "patterns", "allowed"),
    [
        ("image/png", ["*/*"], True),
        ("image/png", ["*"], True),
        ("image/png", ["image/*"], True),
        ("image/png", ["IMAGE/PNG"], True),
        ("image/png", ["text/*", "image/png"], True),
        ("application/vnd.api+json", ["application/*+json"], True),
        ("image/png", [], False),
        ("image/png", [""], False),
        ("image/png", ["image/pn"], False),
        ("image/png", ["mage/png"], False),
        ("imagex/png", ["image/*"], False),
        ("image/png", ["image/pn?"], False),
        ("image/png", ["image/[p]ng"], False),
        ("image/png", ["image.png"], False),
    ],
)
def test_patterns_say_what_is_allowed(content_type, patterns, allowed):
    assert is_allowed(content_type, patterns) is allowed


@pytest.mark.parametrize(
    "content_type", ["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "video/mp4", "video/webm"]
)
def test_pictures_and_films_may_be_shown(content_type):
    assert may_inline(content_type)


@pytest.mark.parametrize("content_type", ["audio/mpeg", "audio/ogg", "audio/wav", "text/plain"])
def test_sounds_and_plain_text_may_be_shown(content_type):
    assert may_inline(content_type)


@pytest.mark.parametrize(
    "content_type",
    [*sorted(ACTIVE), "image/svg+xml", "application/pdf", "text/csv", "text/markdown", "application/json", "TEXT/HTML"],
)
def test_nothing_else_may_be_shown(content_type):
    assert not may_inline(content_type)


def test_texts_are_served_as_utf_8():
    assert served_type("text/csv") == "text/csv; charset=utf-8"
    assert served_type("image/png") == "image/png"
    assert served_type("application/json") == "application/json"
