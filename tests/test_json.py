"""Strict JSON: what the loader refuses, how bodies are read, and what goes out."""

import json
import math
import time

import pytest
from flask import Flask, jsonify, request
from hypothesis import example, given
from hypothesis import strategies as st

from project.errors import AppError, PayloadTooLarge, UnsupportedMediaType
from project.json import MAX_BODY_BYTES, InvalidJson, OrjsonProvider, load_body, loads

INT64 = 10**19 - 1

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-INT64, INT64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


def depth(value: object) -> int:
    """How many brackets are open at once in the text of a value."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


# --- properties -------------------------------------------------------------------------------------------------------


@given(documents, st.booleans(), st.sampled_from([None, 1]))
@example([[]] * 40, True, None)
@example("[" * 50 + '"' + "{" * 50, True, None)
@example(-0.0, True, None)
def test_whatever_is_valid_is_read_as_the_standard_library_reads_it(document, ensure_ascii, indent):
    text = json.dumps(document, ensure_ascii=ensure_ascii, indent=indent)

    found = loads(text.encode())

    # By their texts, since 1 == 1.0 == True in Python.
    assert json.dumps(found) == json.dumps(json.loads(text))
    assert loads(text) == found


@given(st.binary(max_size=200))
@example(b'"\\ud800"')
@example(b"\xff")
@example(b"1" * 5000)
def test_no_bytes_give_anything_but_a_value_or_our_refusal(data):
    try:
        value = loads(data)
    except InvalidJson:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@given(st.text(alphabet='[]{}":,\\ \n0123456789-+.eEtrufalsn', max_size=60))
def test_no_text_of_jsons_own_signs_gives_anything_but_a_value_or_our_refusal(text):
    try:
        value = loads(text)
    except InvalidJson:
        return
    assert json.dumps(json.loads(text)) == json.dumps(value)


@given(documents.filter(lambda document: depth(document) > 0), st.data())
def test_a_document_that_is_cut_is_refused(document, data):
    text = json.dumps(document).encode()

    with pytest.raises(InvalidJson):
        loads(text[: data.draw(st.integers(0, len(text) - 1))])


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "nothing": b"",
    "blanks": b" \n\t",
    "two values": b"{} {}",
    "a trailing comma": b'{"a":1,}',
    "a comment": b"{} // no",
    "single quotes": b"{'a':1}",
    "a bare word": b"hello",
    "a control character in a string": b'"a\nb"',
    "an unknown escape": b'"\\x41"',
    "an unclosed string": b'"abc',
    "a duplicate key": b'{"amount":1,"amount":999}',
    "a duplicate key with another spelling": b'{"a":1,"\\u0061":2}',
    "a duplicate key inside": b'[{"x":{"a":1,"a":1}}]',
    "NaN": b"NaN",
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b"[-Infinity]",
    "1e400": b'{"a":1e400}',
    "-1e400": b"-1e400",
    "20 digits": b"1" * 20,
    "20 digits, negative": b"-" + b"1" * 20,
    "5,000 digits": b"1" * 5000,
    "1,000,000 digits": b"1" * 1_000_000,
    "a leading zero": b"01",
    "a plus": b"+1",
    "a hexadecimal number": b"0x10",
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'{"a":["\\udc00"]}',
    "surrogates the wrong way round": b'"\\udc00\\ud800"',
    "a lone surrogate in a key": b'{"\\ud800":1}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "UTF-16 without a mark": '{"a":1}'.encode("utf-16-le"),
    "UTF-32": '{"a":1}'.encode("utf-32"),
    "Latin-1": '"é"'.encode("latin-1"),
    "overlong UTF-8": b'"\xc0\xaf"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "cut UTF-8": b'"\xe2\x82"',
    "33 lists": b"[" * 33 + b"]" * 33,
    "33 objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "33 of both": b'[{"a":' * 16 + b"[" + b"]" + b"}]" * 16,
    "100,000 lists": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "100,000 objects and lists that end": b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000,
    "33 lists after a string with brackets": b'["]]]]",' + b"[" * 32 + b"]" * 33,
    "33 lists after an escaped quote": b'["\\"",' + b"[" * 32 + b"]" * 33,
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_the_loader_refuses(text):
    with pytest.raises(InvalidJson) as caught:
        loads(text)

    assert caught.value.status == 400


ACCEPTED: dict[str, tuple[bytes, object]] = {
    "null": (b"null", None),
    "blanks around": (b" \r\n\t{} ", {}),
    "19 digits": (b"9" * 19, INT64),
    "19 digits, negative": (b"-" + b"9" * 19, -INT64),
    "minus zero": (b"-0", 0),
    "a float": (b"10.0", 10.0),
    "an exponent": (b"1e3", 1000.0),
    "a tiny number": (b"1e-400", 0.0),
    "a long fraction": (b"0." + b"1" * 5000, 1 / 9),
    "32 lists": (b"[" * 32 + b"]" * 32, None),
    "many lists side by side": (b"[" + b"[]," * 1000 + b"[]]", [[]] * 1001),
    "brackets within strings": (b'{"' + b"[{" * 100 + b'":"' + b'\\"[{' * 100 + b'"}', None),
    "a backslash before the end": (b'["\\\\",' + b"[" * 31 + b"]" * 32, None),
    "a pair of surrogates": (b'"\\ud83d\\ude00"', "😀"),
    "an escaped backslash before u": (b'"\\\\ud800"', "\\ud800"),
    "NUL": (b'"\\u0000"', "\0"),
    "keys that differ in case": (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    "a key of Python": (b'{"__class__":1}', {"__class__": 1}),
}


@pytest.mark.parametrize(("text", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_the_loader_accepts(text, value):
    assert loads(text) == (json.loads(text) if value is None else pytest.approx(value) if value == 1 / 9 else value)


def test_numbers_keep_their_type():
    assert [type(number) for number in loads("[1, 1.0, 1e0, true]")] == [int, float, float, bool]
    assert math.copysign(1, loads("-0.0")) == -1


STRINGS_WITHOUT_END = [b'\\"', b"a", b'"\\', b'\\\\"']


@pytest.mark.parametrize("filler", STRINGS_WITHOUT_END)
def test_the_time_to_refuse_grows_no_faster_than_the_body(filler):
    """Counting depth looks at strings too, and one that never ends must not be tried again from each of its quotes."""

    def seconds(length: int) -> float:
        body = b"[" * 33 + b'"' + filler * (length // len(filler))
        started = time.process_time()
        with pytest.raises(InvalidJson):
            loads(body)
        return time.process_time() - started

    # Ten times the length: ten times the time if it is linear, a hundred if it is quadratic.
    assert seconds(80_000) < 40 * max(min(seconds(8_000) for _ in range(5)), 0.0005)


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def context():
    """Make the context of a request with a body."""
    return Flask("json").test_request_context


CONTENT_TYPES = [
    ("application/json", None),
    ("application/json; charset=utf-8", None),
    ('application/json;charset="UTF-8"', None),
    ("Application/JSON; charset=utf8", None),
    ("application/json; charset=latin-1", UnsupportedMediaType),
    ("application/json; charset=utf-16", UnsupportedMediaType),
    ("application/jsonp", UnsupportedMediaType),
    ("application/problem+json", UnsupportedMediaType),
    ("application/x-www-form-urlencoded", UnsupportedMediaType),
    ("multipart/form-data; boundary=x", UnsupportedMediaType),
    ("application/octet-stream", UnsupportedMediaType),
    ("text/plain", UnsupportedMediaType),
    ("text/json", UnsupportedMediaType),
    ("json", UnsupportedMediaType),
    ("application/json, text/plain", UnsupportedMediaType),
    (";", UnsupportedMediaType),
    ("", UnsupportedMediaType),
    (None, UnsupportedMediaType),
]


@pytest.mark.parametrize(("content_type", "error"), CONTENT_TYPES)
def test_a_body_needs_the_content_type_of_json(context, content_type, error):
    with context(method="POST", data=b'{"a":1}', content_type=content_type):
        if error is None:
            assert load_body(request) == {"a": 1}
        else:
            with pytest.raises(error):
                load_body(request)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_a_compressed_body_is_not_inflated(context, encoding):
    with (
        context(method="POST", data=b"{}", content_type="application/json", headers={"Content-Encoding": encoding}),
        pytest.raises(UnsupportedMediaType),
    ):
        load_body(request)


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
def test_the_encoding_that_means_none_is_accepted(context, encoding):
    headers = {"Content-Encoding": encoding}
    with context(method="POST", data=b"{}", content_type="application/json", headers=headers):
        assert load_body(request) == {}


@pytest.mark.parametrize("content_type", ["application/json", None])
def test_an_empty_body_is_400_and_not_an_empty_object(context, content_type):
    with context(method="POST", data=b"", content_type=content_type), pytest.raises(InvalidJson):
        load_body(request)


def test_a_chunked_body_without_a_content_type_is_415(context):
    with (
        context(method="POST", headers={"Transfer-Encoding": "chunked"}),
        pytest.raises(UnsupportedMediaType),
    ):
        load_body(request)


@pytest.mark.parametrize("chunked", [False, True])
def test_256_kib_are_accepted_and_one_byte_more_is_not(context, chunked):
    # As gunicorn hands over a chunked body: without a length, and with an end of its own.
    framing = {"environ_overrides": {"CONTENT_LENGTH": "", "wsgi.input_terminated": True}} if chunked else {}
    most = b'"' + b"a" * (MAX_BODY_BYTES - 2) + b'"'
    with context(method="POST", data=most, content_type="application/json", **framing):
        assert len(load_body(request)) == MAX_BODY_BYTES - 2
    with (
        context(method="POST", data=most + b" ", content_type="application/json", **framing),
        pytest.raises(PayloadTooLarge),
    ):
        load_body(request)


def test_a_body_that_says_it_is_too_large_is_not_read(context):
    length = {"CONTENT_LENGTH": str(MAX_BODY_BYTES + 1)}
    with context(method="POST", data=b"{}", content_type="application/json", environ_overrides=length):
        with pytest.raises(PayloadTooLarge):
            load_body(request)
        assert request.environ["wsgi.input"].read() == b"{}"


def test_a_body_is_parsed_once(context):
    with context(method="POST", data=b'{"a":[1]}', content_type="application/json"):
        assert load_body(request) is load_body(request)


def test_the_content_type_is_judged_before_the_size_and_the_size_before_the_syntax(context):
    huge = b"x" * (MAX_BODY_BYTES + 1)
    with context(method="POST", data=huge, content_type="text/plain"), pytest.raises(UnsupportedMediaType):
        load_body(request)
    with context(method="POST", data=huge, content_type="application/json"), pytest.raises(PayloadTooLarge):
        load_body(request)


# --- out --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def flask_app():
    app = Flask("json")
    app.json = OrjsonProvider(app)
    return app


def test_flask_itself_parses_strictly(flask_app):
    twice = {"data": b'{"a":1,"a":2}', "content_type": "application/json"}
    with flask_app.test_request_context(method="POST", **twice), pytest.raises(AppError):
        request.get_json()


def test_answers_are_compact_utf_8_without_nan(flask_app):
    with flask_app.test_request_context():
        response = jsonify(data={"name": "Zoë", "ratio": math.nan, "most": math.inf})

    assert response.data == '{"data":{"name":"Zoë","ratio":null,"most":null}}'.encode()
    assert response.content_type == "application/json"
