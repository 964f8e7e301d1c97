import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaks import leaks
from tests.servers.process import running

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"event": "mail to ann@example.com failed"}', "an e-mail address"),
        ('{"reason": "pi_sbx_01_secret_0a1b"}', "a client secret"),
        ('{"reason": "whsec_sbx_0a1b"}', "a webhook secret"),
        ('{"reason": "sk_test_0a1b"}', "a key of the provider"),
        ('{"reason": "rk_live_0a1b"}', "a key of the provider"),
        ('{"event": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi"}', "a token"),
        ('{"event": "Authorization: Bearer 0a1b2c3d4e"}', "a token"),
        ('{"event": "correct horse battery staple"}', "a password"),
        ('{"event": "$argon2id$v=19$"}', "a password"),
        ('{"event": "4242424242424242"}', "a card number"),
        ('{"event": "card=4242 4242 4242 4242, declined"}', "a card number"),
        ('{"amount": 378282246310005}', "a card number"),
        ("number 3782-822463-10005", "a card number"),
    ],
)
def test_what_leaks_is_named(text, name):
    assert leaks(text) == [name]


@pytest.mark.parametrize(
    "text",
    [
        '{"event": "request", "time": "2026-11-22T16:45:00.123456Z", "duration_ms": 4.242424242424242}',
        '{"count": 4242424242424241}',  # the last digit is wrong
        '{"count": 1763829900000}',  # milliseconds since 1970
        '{"payment_id": "01942424-2424-7242-8424-424242424242"}',
        '{"file": "0194242424242424242424242424242f"}',
        '{"reason": "the client_secret is wrong"}',
        '{"event": "by @somebody or a@b"}',
        r'{"exception": "  File \"/x/tests/a.py\", line 7, in boom\n    raise E(\"ann@example.com\")\nE"}',
    ],
)
def test_what_only_looks_like_it_is_no_leak(text):
    assert leaks(text) == []


def test_source_of_the_product_in_a_traceback_is_read():
    line = r'{"exception": "  File \"/x/src/project/a.py\", line 7, in boom\n    raise E(\"ann@example.com\")\nE"}'
    assert leaks(line) == ["an e-mail address"]


LEAKING = """
import logging
from pathlib import Path

import pytest

from project import create_app

logger = logging.getLogger("project.payments")


@pytest.fixture
def forgetful():
    yield
    logger.warning("mail to ann@example.com failed")


def test_that_leaks(tmp_path):
    create_app({"APP_ENV": "testing", "DATA_DIR": str(tmp_path)})
    logger.info("charged", extra={"reason": "4242 4242 4242 4242"})


def test_whose_fixture_leaks(forgetful):
    pass


def test_that_says_nothing():
    logger.warning("charged", extra={"email": "ann@example.com", "payment_id": 7})
"""


def test_a_test_in_which_a_line_leaks_fails(tmp_path: Path):
    (tmp_path / "test_leaks.py").write_text(LEAKING)
    options = ["-p", "tests.log_watch", "-p", "no:randomly", "-p", "no:cacheprovider", "-rA"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_leaks.py")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert set(re.findall(r"^([A-Z]+) \S+::(\w+)", done.stdout, re.MULTILINE)) == {
        ("FAILED", "test_that_leaks"),
        ("PASSED", "test_whose_fixture_leaks"),
        ("ERROR", "test_whose_fixture_leaks"),
        ("PASSED", "test_that_says_nothing"),
    }
    assert "a log line holds an e-mail address" in done.stdout
    assert "a log line holds a card number" in done.stdout


@pytest.mark.parametrize(
    ("line", "leaky"),
    [('{"event": "sent to ann@example.com"}', True), ("demo@example.com may sign in", False)],
    ids=["log", "print"],
)
def test_what_a_server_has_logged_is_read_when_it_stops(tmp_path: Path, line: str, leaky: bool):
    script = f"import time; print({line!r}, flush=True); time.sleep(60)"
    log = tmp_path / "log"

    def run() -> None:
        with running([sys.executable, "-c", script], log=log, ready=lambda: bool(log.read_text()), is_ours=True):
            pass

    if leaky:
        with pytest.raises(pytest.fail.Exception, match="an e-mail address"):
            run()
    else:
        run()
