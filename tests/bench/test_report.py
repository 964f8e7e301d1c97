import pytest

from bench import report
from bench.report import Target, ratios, spread

RATES = {
    "gunicorn": [300.0, 280.0, 100.0],
    "granian": [500.0, 480.0, 470.0],
    "fastapi_sync": [100.0, 100.0, 50.0],
    "fastapi_async": [400.0, 480.0, 470.0],
    "plain": [1000.0, 1000.0, 1000.0],
}


def workload() -> dict[str, object]:
    waits = {key: [1.0] for key in RATES}
    return {"title": "GET /v1/users/me", "rate": RATES, "p50": waits, "p99": waits, "cpu": waits}


def test_ratios_are_taken_round_by_round():
    assert ratios([300, 280, 100], [100, 100, 50]) == [3, 2.8, 2]


def test_ratios_of_other_rounds_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        ratios([1, 2], [1])


def test_a_spread_shows_the_median_and_the_range():
    assert str(spread([2.0, 1.0, 9.0])) == "2.00 (1.00 to 9.00)"


@pytest.mark.parametrize(("at_least", "reached"), [(True, False), (False, True)])
def test_the_median_decides_whether_a_target_is_reached(at_least, reached):
    assert Target("name", [1.0, 1.9, 5.0], 2.0, at_least=at_least, unit="").reached is reached


def test_the_targets_of_a_workload_are_beside_the_peers_that_were_measured():
    found = report.targets({"workloads": {"w1": workload()}})
    assert [(target.name.split(" / ")[1], target.reached) for target in found] == [
        ("FastAPI sync, SQLModel", True),
        ("FastAPI async, asyncpg", True),
        ("no framework, granian (the limit)", True),
    ]


def test_the_cost_of_a_page_is_that_of_the_long_list_beside_the_short_one():
    [target] = report.targets({"depth": {"1000": [200.0], "1000000": [100.0]}})
    assert (list(target.values), target.reached) == ([2.0], False)


def test_the_text_tells_of_every_part():
    footprint = {key: {"start": [1.0], "memory": [100.0]} for key in ("gunicorn", "granian")}
    login = {"login": [60.0], "hash": [70.0], "quiet_p99": [5.0], "storm_p99": [20.0]}
    files = {
        "download": {"ours": [95.0], "nginx": [100.0]},
        "upload": {"seconds": [0.5], "reference": [0.5], "memory": [5.0]},
    }
    depth = {"1000": [200.0], "1000000": [190.0]}
    parts = {"workloads": {"w1": workload()}, "login": login, "depth": depth, "files": files, "footprint": footprint}
    text = report.text(parts)
    for part in ("W1  GET /v1/users/me", "Start and memory", "Login", "Depth", "Download", "Upload"):
        assert part in text
    assert "p99 of W1 in a storm of sign-ins / in quiet: 4.00 (4.00 to 4.00) x, wanted ≤ 3 x: NOT reached" in text
