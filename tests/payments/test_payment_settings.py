"""The settings of payments: what Stripe needs before anything starts, and that no message shows a key."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from project.config import load_config
from project.environment import ConfigError
from project.payment_settings import Payments

ROOT = Path(__file__).parents[2]
TEST = {
    "PAYMENTS_PROVIDER": "stripe",
    "STRIPE_SECRET_KEY": "sk_test_0123sesame456789",
    "STRIPE_PUBLISHABLE_KEY": "pk_test_0123sesame456789",
    "STRIPE_WEBHOOK_SECRETS": "whsec_0123sesame456789",
}
LIVE = {**TEST, "STRIPE_SECRET_KEY": "sk_live_0123sesame456789", "STRIPE_PUBLISHABLE_KEY": "pk_live_0123sesame456789"}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Defaults are relative to the current folder."""
    monkeypatch.chdir(tmp_path)


def payments(**env: str) -> Payments:
    return load_config(env).payments


def refusal(env: Mapping[str, str]) -> str:
    """Return the one line with which these settings are refused, which shows nothing of a key."""
    with pytest.raises(ConfigError) as caught:
        load_config(env)
    message = str(caught.value)
    assert "\n" not in message
    assert "sesame" not in message
    return message


def test_the_sandbox_needs_nothing_and_moves_no_money():
    found = payments()

    assert (found.provider, found.publishable_key, found.livemode) == ("sandbox", "pk_sandbox", False)
    assert (found.secret_key, found.webhook_secrets, found.setup_key) == ("", [], "")


def test_stripe_starts_with_its_three_keys():
    found = payments(**TEST)

    assert (found.provider, found.secret_key) == ("stripe", TEST["STRIPE_SECRET_KEY"])
    assert (found.publishable_key, found.livemode) == (TEST["STRIPE_PUBLISHABLE_KEY"], False)
    assert found.webhook_secrets == [TEST["STRIPE_WEBHOOK_SECRETS"]]


@pytest.mark.parametrize("key", ["sk_live_0123456789", "rk_live_0123456789"])
def test_real_money_moves_with_a_live_key(key):
    assert payments(**{**LIVE, "STRIPE_SECRET_KEY": key}).livemode


def test_a_restricted_key_is_a_key():
    assert not payments(**{**TEST, "STRIPE_SECRET_KEY": "rk_test_0123456789"}).livemode


def test_while_one_secret_replaces_another_both_are_good():
    found = payments(**{**TEST, "STRIPE_WEBHOOK_SECRETS": "whsec_0123456789abc , whsec_abc0123456789"})

    assert found.webhook_secrets == ["whsec_0123456789abc", "whsec_abc0123456789"]


@pytest.mark.parametrize("name", ["STRIPE_SECRET_KEY", "STRIPE_PUBLISHABLE_KEY", "STRIPE_WEBHOOK_SECRETS"])
@pytest.mark.parametrize(
    "value", [None, "", "  ", "sesame", "whsec_", "sk_test_", "pk_live_", "sk_test_жsesame0123456"]
)
def test_without_one_of_them_stripe_does_not_start(name, value):
    env = {key: text for key, text in {**TEST, name: value}.items() if text is not None}

    assert refusal(env).startswith(f"{name} ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_SECRET_KEY", "pk_test_0123sesame456789"),
        ("STRIPE_SECRET_KEY", "whsec_0123sesame456789"),
        ("STRIPE_SECRET_KEY", "sk_sesame_0123456789"),
        ("STRIPE_SECRET_KEY", "sk_test_0123\nsesame456"),
        ("STRIPE_PUBLISHABLE_KEY", "sk_test_0123sesame456789"),
        ("STRIPE_WEBHOOK_SECRETS", "sk_test_0123sesame456789"),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_0123sesame456789,sesame"),
        ("STRIPE_WEBHOOK_SECRETS", "whsec_0123sesame456789,whsec_"),
        ("STRIPE_WEBHOOK_SECRETS", ","),
    ],
)
def test_a_key_in_the_wrong_place_is_refused(name, value):
    assert refusal({**TEST, name: value}).startswith(f"{name} ")


def test_the_way_to_a_webhook_secret_is_named_and_leads_there_from_production():
    production = {
        **LIVE,
        "APP_ENV": "production",
        "DATABASE_URL": "postgresql://app@db.example.com/app",
        "SECRET_KEY": "0123456789abcdefghijklmnopqrstuv",
        "JWT_SECRET_KEYS": "k1:vutsrqponmlkjihgfedcba9876543210",
        "STRIPE_WEBHOOK_SECRETS": "",
    }
    message = refusal(production)
    assert "flask payments setup-webhook" in message

    named = dict(re.findall(r"([A-Z_]+)=([a-z]+)", message))

    assert payments(**{**production, **named}).setup_key == LIVE["STRIPE_SECRET_KEY"]


@pytest.mark.parametrize(("secret", "publishable"), [(TEST, LIVE), (LIVE, TEST)])
def test_keys_of_two_modes_are_refused(secret, publishable):
    env = {**secret, "STRIPE_PUBLISHABLE_KEY": publishable["STRIPE_PUBLISHABLE_KEY"]}

    assert refusal(env).startswith("STRIPE_PUBLISHABLE_KEY ")


def test_a_live_key_is_refused_while_debugging():
    assert refusal({**LIVE, "DEBUG": "1"}).startswith("STRIPE_SECRET_KEY ")
    assert not payments(**TEST, DEBUG="1").livemode


def test_the_sandbox_stays_the_sandbox_when_a_key_is_there_to_set_stripe_up_with():
    found = payments(STRIPE_SECRET_KEY=LIVE["STRIPE_SECRET_KEY"])

    assert (found.provider, found.secret_key, found.livemode) == ("sandbox", "", False)
    assert found.setup_key == LIVE["STRIPE_SECRET_KEY"]


def test_currencies_may_be_written_in_any_way_and_keep_their_order():
    assert payments(PAYMENTS_CURRENCIES="eur, usd KWD").currencies == ["EUR", "USD", "KWD"]


@pytest.mark.parametrize("code", ["ISK", "UGX", "MGA", "HUF", "TWD", "IQD", "LYD", "CLF", "UYI", "UYW", "XXX", "USDT"])
def test_a_currency_that_the_provider_counts_otherwise_is_refused(code):
    message = refusal({"PAYMENTS_CURRENCIES": f"USD {code}"})

    assert message.startswith("PAYMENTS_CURRENCIES ")
    assert code not in message


@pytest.mark.parametrize(
    ("written", "meant"),
    [("90 s", timedelta(seconds=90)), ("30min", timedelta(minutes=30)), ("2 d", timedelta(days=2))],
)
def test_the_time_to_pay_has_a_unit(written, meant):
    assert payments(PAYMENTS_EXPIRE_AFTER=written).expire_after == meant


def test_settings_of_payments_do_not_show_themselves():
    assert "sesame" not in repr(payments(**TEST))


@pytest.mark.server
def test_a_process_without_a_webhook_secret_ends_with_one_line(tmp_path):
    env = {**os.environ, **TEST, "STRIPE_WEBHOOK_SECRETS": "", "APP_ENV": "development", "DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "flask", "payments", "reconcile"]
    done = subprocess.run(command, check=False, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)

    printed = done.stdout + done.stderr
    assert done.returncode != 0
    assert "STRIPE_WEBHOOK_SECRETS must be" in printed
    assert "Traceback" not in printed
    assert "sesame" not in printed
