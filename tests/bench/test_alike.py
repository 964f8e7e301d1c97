from typing import Any

import pytest

from bench.alike import compare
from bench.workloads import Answer, UnequalError

LINK = {
    "id": "0190f8e2-5a3b-7c4d-8e9f-0a1b2c3d4e5f",
    "url": "http://127.0.0.1:8000/v1/shares/0123456789012345678901234567890123456789",
    "created_at": "2030-01-31T12:00:00.000001Z",
    "label": "for Ben",
}
OTHER_LINK = {
    "id": "7b1e9c9e-57ab-4c8e-8c86-0d7a3b2f6a11",
    "url": "http://127.0.0.1:9000/v1/shares/abcdefghijklmnopqrstuvwxyz",
    "created_at": "2031-01-31T12:00:00Z",
    "label": "for Ben",
}


def check(body: Any, expected: Any, status: int = 200) -> None:
    compare("somebody", Answer(status, body), Answer(200, expected), refused={200})


def test_what_has_to_differ_may_differ():
    check({"data": OTHER_LINK}, {"data": LINK})


@pytest.mark.parametrize(
    "change",
    [{"label": "for Ann"}, {"id": 7}, {"created_at": "2031-01-31 12:00:00"}, {"url": "/v1/shares/x"}, {"x": 1}],
)
def test_all_else_may_not(change):
    with pytest.raises(UnequalError):
        check({"data": {**OTHER_LINK, **change}}, {"data": LINK})


def test_ids_in_lists_have_to_be_the_same():
    with pytest.raises(UnequalError):
        check({"data": [{"id": OTHER_LINK["id"]}]}, {"data": [{"id": LINK["id"]}]})


def test_cursors_may_differ_and_must_be_there():
    page: dict[str, Any] = {"data": [], "meta": {"limit": 50, "next_cursor": "a" * 40}}
    check({"data": [], "meta": {"limit": 50, "next_cursor": "b" * 60}}, page)
    with pytest.raises(UnequalError):
        check({"data": [], "meta": {"limit": 50, "next_cursor": None}}, page)


def test_an_error_is_no_answer():
    with pytest.raises(UnequalError):
        check({"data": LINK}, {"data": LINK}, status=500)


def test_a_refusal_has_to_be_one_of_that_kind():
    expected = Answer(422, {"code": "validation_error"})
    compare("somebody", Answer(400, {"detail": "No."}), expected, refused={400, 422})
    with pytest.raises(UnequalError):
        compare("somebody", Answer(201, {"data": LINK}), expected, refused={400, 422})
