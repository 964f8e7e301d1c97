from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from project.database import engine_options
from project.postgresql import SilentError, watch
from tests.http.client import eventually
from tests.servers.faults import Link, run_link


@contextmanager
def connected(url: str, *, pool_size: int = 2) -> Iterator[tuple[Engine, Link]]:
    """An engine as the application has it, whose connections go through a link."""
    target = make_url(url)
    assert target.port is not None
    with run_link(target.port) as link:
        through = target.set(host="127.0.0.1", port=link.port)
        engine = create_engine(through, **engine_options(url, pool_size=pool_size))
        watch(engine)
        try:
            yield engine, link
        finally:
            engine.dispose()


def ask(engine: Engine, statement: str = "SELECT 1") -> object:
    with engine.connect() as connection:
        return connection.scalar(text(statement))


def heard(engine: Engine) -> object:
    try:
        return ask(engine)
    except OperationalError:
        return None


@pytest.mark.server
def test_a_statement_fails_when_the_server_has_fallen_silent(postgres_url):
    with connected(postgres_url) as (engine, link):
        ask(engine)
        link.swallow()
        with pytest.raises(OperationalError) as refused:
            ask(engine)
        assert isinstance(refused.value.orig, SilentError)
        assert refused.value.connection_invalidated


@pytest.mark.server
def test_a_transaction_fails_and_ends_when_the_server_has_fallen_silent(postgres_url):
    with connected(postgres_url) as (engine, link):
        with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection:
            connection.execute(text("SELECT 1"))
            link.swallow()
            with pytest.raises(OperationalError):
                connection.execute(text("SELECT 2"))
        link.heal()
        assert eventually(lambda: heard(engine), "the server is heard again")


@pytest.mark.server
def test_a_statement_that_is_only_slow_goes_on(postgres_url):
    with connected(postgres_url) as (engine, _link):
        assert ask(engine, "SELECT 1 FROM pg_sleep(2.5)") == 1


@pytest.mark.server
def test_those_who_wait_for_a_connection_do_not_wait_one_after_another(postgres_url):
    # Ten rounds of two connections, each of which hears nothing, would take 20 s and more; then most would get a
    # timeout of the pool and not this error.
    with connected(postgres_url, pool_size=2) as (engine, link), ThreadPoolExecutor(20) as pool:
        ask(engine)
        link.swallow()
        errors = [future.exception() for future in [pool.submit(ask, engine) for _ in range(20)]]
        assert {type(error) for error in errors} == {OperationalError}


@pytest.mark.server
def test_all_goes_on_when_the_server_is_heard_again(postgres_url):
    with connected(postgres_url) as (engine, link):
        ask(engine)
        link.swallow()
        with pytest.raises(OperationalError):
            ask(engine)
        link.heal()
        assert eventually(lambda: heard(engine), "the server is heard again")
