import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from threading import get_native_id
from unicodedata import normalize

import pytest
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from project.auth import passwords
from project.auth.passwords import check_policy, hash_password, needs_rehash, verify_password
from project.errors import Invalid, Unavailable
from tests.auth.conftest import ADMITTED

# Several sentences, so that no pattern of zxcvbn covers them: 300 characters.
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen; Winston Smith slipped in. " * 3
PHRASE = "r\u00e9sum\u00e9 of my life"


def refusal(password: str, email: str = "") -> str | None:
    """The code that a password is refused with."""
    try:
        check_policy(password, pointer="/password", email=email)
    except Invalid as error:
        (field,) = error.errors
        assert field.pointer == "/password"
        assert password not in field.detail
        return field.code
    return None


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (1, "password_too_short"),
        (11, "password_too_short"),
        (12, None),
        (64, None),
        (256, None),
        (257, "password_too_long"),
        (300, "password_too_long"),
    ],
)
def test_a_password_has_12_to_256_characters(length, code):
    assert refusal(TEXT[:length]) == code


def test_length_is_counted_in_code_points_and_not_in_bytes():
    assert refusal("ключ от дом") == "password_too_short"  # 11 characters, 20 bytes
    animals = "".join(chr(0x1F400 + number * 7 % 256) for number in range(257))
    assert refusal(animals[:256]) is None  # 1024 bytes
    assert refusal(animals) == "password_too_long"


def test_combining_marks_count_as_characters_of_their_own():
    assert refusal("e\u0301" * 5 + "x") == "password_too_short"
    assert refusal("re\u0301sume\u0301 naif") is None


@pytest.mark.parametrize(
    "password",
    [
        "tulipanvilgrape",
        "TULIPANVILGRAPE",
        "correct horse battery staple",
        "  🦉 🦉   🎈 🎈 🌵",
        "🦉🎈🌵🐙🦜🪁🧭🫖🪗🛷🪀🧶",
        "пароль от моего дома",
        "839201746352",
        ";:,._-#+*~!?)(",
        "' OR '1'='1' --",
    ],
)
def test_there_are_no_composition_rules(password):
    assert refusal(password) is None


@pytest.mark.parametrize(
    "password",
    [
        "projectproject1",
        "projectproject",
        "passwordpassword",
        "P@ssw0rd1234",
        "123456789012",
        "qwertyuiop12",
        "iloveyou1234",
        "abcdefghijkl",
        "drowssapdrow",
        "aaaaaaaaaaaa",
        "a" * 256,
        "abc" * 20,
        " " * 15,
        "🦉" * 12,
    ],
)
def test_what_is_easy_to_guess_is_refused(password):
    assert refusal(password) == "password_too_common"


def test_every_long_password_of_the_list_of_common_ones_is_refused():
    common = [word for word in FREQUENCY_LISTS["passwords"] if len(word) >= passwords.MIN_LENGTH]
    assert len(common) > 200
    assert [word for word in common if refusal(word) != "password_too_common"] == []


@pytest.mark.parametrize(
    "password", ["wilhelmina.q@corp.example", "wilhelmina.q", "Wilhelmina.Q1", "wilhelmina.qwilhelmina.q"]
)
def test_the_address_is_no_password(password):
    assert refusal(password, "wilhelmina.q@corp.example") == "password_too_common"


def test_the_local_part_repeated_is_no_password():
    assert refusal("annjomannjomannjom", "annjom@example.com") == "password_too_common"
    assert refusal("zkqyvzkqyv12", "zkqyv@example.com") == "password_too_common"


def test_somebody_elses_address_is_a_password_like_any_other():
    assert refusal("wilhelmina.q@corp.example", "ann@example.com") is None


@pytest.mark.parametrize("other", [normalize("NFD", PHRASE), " " + PHRASE, PHRASE + " ", PHRASE.title()])
def test_a_password_is_taken_exactly_as_it_was_sent(hasher, other):
    for one, another in ((PHRASE, other), (other, PHRASE)):
        stored = hash_password(one)
        assert verify_password(one, stored)
        assert not verify_password(another, stored)


def test_no_character_of_a_long_password_is_cut_off():
    stored = hash_password(TEXT[:256])
    assert not verify_password(TEXT[:255] + "#", stored)
    assert not verify_password(TEXT[:255], stored)


def test_hashes_are_argon2id_with_the_recommended_parameters():
    stored = hash_password("tulipanvilgrape")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert stored != hash_password("tulipanvilgrape"), "each has a salt of its own"
    assert not needs_rehash(stored)


def test_a_hash_of_other_parameters_needs_to_be_made_again(hasher):
    assert needs_rehash("$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$Gy8CtfGbEzOK0T9UhFkNCw")
    assert not needs_rehash(hash_password("tulipanvilgrape"))


@pytest.mark.parametrize("stored", [None, "", "!", "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$AAAA"])
def test_without_a_usable_hash_nothing_fits(stored):
    assert not verify_password("a password that nobody has", stored)


@pytest.mark.parametrize(
    ("password", "has_hash"), [("tulipanvilgrape", True), ("grapeanviltulip", True), ("tulipanvilgrape", False)]
)
def test_a_verification_costs_one_run_whatever_its_outcome(hasher, password, has_hash):
    stored = hash_password("tulipanvilgrape") if has_hash else None
    verify_password(password, stored)
    assert hasher.verified == 1
    assert hasher.hashed == has_hash


def test_more_than_a_few_at_once_are_told_to_come_back(held_hasher):
    stored = held_hasher.hash("tulipanvilgrape")
    with ThreadPoolExecutor(ADMITTED + 1) as threads:
        tries = [threads.submit(verify_password, "tulipanvilgrape", stored) for _ in range(ADMITTED + 1)]
        refused, waiting = wait(tries, timeout=30, return_when=FIRST_COMPLETED)
        held_hasher.go_on.set()
    (error,) = [one.exception() for one in refused]
    assert isinstance(error, Unavailable)
    assert error.headers == {"Retry-After": "1"}
    assert [one.result() for one in waiting] == [True] * ADMITTED


def test_who_hashes_steps_behind_those_who_only_read():
    thread = passwords._hashes.submit(get_native_id).result(10)
    assert os.getpriority(os.PRIO_PROCESS, thread) == passwords.NICENESS > os.getpriority(os.PRIO_PROCESS, 0)


def test_every_run_gives_its_place_back(hasher):
    stored = hash_password("tulipanvilgrape")
    for _ in range(ADMITTED + 1):
        verify_password("tulipanvilgrape", stored)
        verify_password("grapeanviltulip", stored)
        verify_password("tulipanvilgrape", "!")
        hash_password("tulipanvilgrape")
