import json

import pytest

from bench.load import LoadFailedError, Request, parse, write_requests

FOUND = {"requests": 900, "microseconds": 2_000_000, "bytes": 5, "refused": 0, "broken": 0, "p50": 1500, "p99": 9000}


def output(**values: int) -> str:
    return f"Running 2s test\nRESULT {json.dumps({**FOUND, **values})}\nTransfer/sec: 1MB\n"


def test_the_rate_is_of_the_time_that_wrk_took():
    measured = parse(output())
    assert (measured.rate, measured.p50, measured.p99) == (450, 1.5, 9)


def test_refused_requests_do_not_count():
    assert parse(output(refused=300), refusals=True).rate == 300


@pytest.mark.parametrize("values", [{"refused": 1}, {"broken": 1}, {"requests": 0}])
def test_nobody_is_measured_answering_errors(values):
    with pytest.raises(LoadFailedError):
        parse(output(**values))


def test_lost_answers_do_not_count_even_where_refusals_are_expected():
    with pytest.raises(LoadFailedError):
        parse(output(broken=1), refusals=True)


def test_an_output_without_a_result_is_shown():
    with pytest.raises(LoadFailedError, match="unable to connect"):
        parse("unable to connect to 127.0.0.1\n")


def test_requests_are_written_one_to_a_line(tmp_path):
    path = write_requests(tmp_path / "requests", [Request("GET", "/a"), Request("POST", "/b", "token", '{"c": 1}')])
    assert path.read_text() == 'GET\t/a\t\t\nPOST\t/b\ttoken\t{"c": 1}\n'


def test_a_request_with_a_separator_in_it_is_refused():
    with pytest.raises(ValueError, match="separator"):
        Request("GET", "/a", body="two\nlines").line()
