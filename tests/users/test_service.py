from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import event, func, select

from project.audit import AuditEvent
from project.database import db, transaction
from project.errors import NotFound
from project.security import Role
from project.users import service
from project.users.models import User
from project.users.service import EmailTaken
from tests.factories import make_user

ANN = "ann@example.com"


def count(model) -> int:
    return db.session.scalar(select(func.count()).select_from(model)) or 0


def erase(user: User) -> None:
    service.erase_user(user.id, actor_id=None)


def test_a_taken_address_is_refused_and_leaves_nothing(session):
    make_user(email=ANN)
    with pytest.raises(EmailTaken):
        service.create_user(email=ANN, role=Role.ADMIN)
    assert (count(User), count(AuditEvent)) == (1, 0)
    service.create_user(email="ben@example.com")
    assert (count(User), count(AuditEvent)) == (2, 1)


def test_of_accounts_with_one_address_at_once_one_is_created(in_app, at_once):
    for number in range(5):
        results = at_once(*[partial(service.create_user, email=f"user{number}@example.com")] * 4)
        assert [isinstance(result, EmailTaken) for result in results].count(True) == 3
        assert (in_app(count, User), in_app(count, AuditEvent)) == (number + 1, number + 1)


def test_an_account_is_created_only_with_all_of_its_transaction(session):
    @transaction()
    def create_and_fail() -> None:
        service.create_user(email=ANN)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        create_and_fail()
    assert (count(User), count(AuditEvent)) == (0, 0)


def test_a_new_account_is_an_unconfirmed_user_without_a_password(session):
    user = service.create_user(email=ANN)
    assert (user.role, user.is_active, user.email_verified, user.password_hash) == (Role.USER, True, False, None)
    assert service.get_user(user.id).email == ANN


def test_an_account_is_found_by_its_id_and_address(session):
    user = make_user(email=ANN)
    make_user()
    found = (
        service.find_user(user.id),
        service.get_user(user.id),
        service.find_by_email(ANN),
        service.get_by_email(ANN),
    )
    assert found == (user, user, user, user)


def test_no_account_is_found_by_a_wrong_id_or_address(session):
    assert service.find_user(uuid4()) is None
    assert service.find_by_email(ANN) is None
    for find in (partial(service.get_user, uuid4()), partial(service.get_by_email, ANN)):
        with pytest.raises(NotFound):
            find()


def test_an_erased_account_is_not_found(session):
    user = make_user(email=ANN)
    erase(user)
    assert service.find_user(user.id) is None
    for find in (partial(service.get_user, user.id), partial(service.get_by_email, ANN)):
        with pytest.raises(NotFound):
            find()


def test_an_account_in_hand_shows_what_was_changed(session):
    user = make_user(name="Before")
    changed = service.update_user(user.id, actor_id=None, name="After")
    assert changed is user
    assert (user.name, user.version) == ("After", 2)


CHANGES = {
    "creating": lambda user: service.create_user(email=ANN),
    "promoting": lambda user: service.update_user(user.id, actor_id=None, role=Role.ADMIN),
    "activating": lambda user: service.update_user(user.id, actor_id=None, is_active=True),
    "ending sessions": lambda user: service.end_sessions(user.id, actor_id=None),
    "erasing": erase,
}


@pytest.fixture
def unwritable_log():
    """An audit log that takes no event."""

    def refuse(*_) -> None:
        raise ConnectionError("the log is away")

    event.listen(AuditEvent, "before_insert", refuse)
    yield
    event.remove(AuditEvent, "before_insert", refuse)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_changes_that_cannot_be_written_into_the_audit_log(session, unwritable_log, change):
    user = make_user(email="ben@example.com")
    with pytest.raises(ConnectionError):
        change(user)
    session.expire_all()
    found = service.get_user(user.id)
    assert (found.email, found.role, found.session_epoch, found.version) == ("ben@example.com", Role.USER, 1, 1)
    assert count(User) == 1
