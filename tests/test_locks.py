import pytest

from project.locks import AlreadyRunning, alone


def test_of_two_only_one_is_alone(session):
    with alone("work"), pytest.raises(AlreadyRunning), alone("work"):
        pass


def test_what_has_another_name_is_not_in_the_way(session):
    with alone("work"), alone("other work"):
        pass


def test_a_lock_is_free_at_once_when_its_block_has_ended(session):
    for _ in range(50):
        with alone("work"):
            pass
