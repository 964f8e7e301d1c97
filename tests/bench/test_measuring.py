"""The cheap halves of measuring: turns, processes, options and the tokens of the callers."""

import os
import time

import jwt
import pytest

from bench import processes
from bench.contenders import ALL, PROCESSES, SECRET, environment
from bench.rounds import turned
from bench.run import PARTS, options
from bench.seed import HASHER, PASSWORD
from bench.workloads import make_token
from project.auth.passwords import needs_rehash
from project.config import load_config


def test_everybody_comes_first_in_turn():
    assert [turned("abc", number)[0] for number in range(-1, 3)] == ["c", "a", "b", "c"]


def test_a_turn_leaves_nobody_out():
    assert sorted(turned("abc", 7)) == ["a", "b", "c"]


def test_everything_is_measured_unless_something_is_chosen():
    chosen = options([])
    assert (chosen.parts, chosen.contenders) == (list(PARTS), list(ALL))


def test_some_contenders_can_be_chosen():
    assert [contender.key for contender in options(["--only", "plain,drf"]).contenders] == ["drf", "plain"]


@pytest.mark.parametrize("arguments", [["--parts", "upload"], ["--only", "flask"]])
def test_what_there_is_not_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        options(arguments)
    assert "there is no" in capsys.readouterr().err


def test_the_product_gets_the_processes_and_threads_that_the_peers_get(tmp_path):
    settings = load_config(
        environment("postgresql+psycopg://u@127.0.0.1/d", tmp_path, 8000) | {"PROMETHEUS_MULTIPROC_DIR": ""}
    )
    assert settings.web_concurrency == PROCESSES
    assert settings.jwt_keys == {"bench": SECRET}
    assert not settings.rate_limits


def test_tokens_have_the_claims_of_ours():
    claims = jwt.decode(make_token("u", "s", "staff"), SECRET, algorithms=["HS256"], audience="project-api")
    assert set(claims) == {"iss", "aud", "sub", "sid", "role", "type", "fresh", "iat", "exp", "jti"}


@pytest.mark.skipif(not processes.PROC.is_dir(), reason="needs /proc")
def test_memory_is_that_of_the_process():
    assert 1 < processes.memory(os.getpid()) <= processes.memory(os.getpid(), peak=True) + 1


def test_seeded_passwords_are_hashed_as_the_product_does_it():
    assert not needs_rehash(HASHER.hash(PASSWORD))


@pytest.mark.skipif(not processes.PROC.is_dir(), reason="needs /proc")
def test_the_time_that_a_process_ran_grows_while_it_runs():
    before, deadline = processes.cpu_seconds(os.getpid()), time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    assert 0.01 <= processes.cpu_seconds(os.getpid()) - before < 10
