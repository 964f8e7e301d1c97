"""A job that runs again, since its worker was killed before it could note the end, sends the same mail again."""

import pytest
from flask import Flask

from project import jobs
from project.auth import links
from project.mail import Message
from project.queues import current_queue
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("session")


def run_twice(app: Flask) -> None:
    """Run the job that waits, and again, as after a kill."""
    queue = current_queue()
    job = queue.claim()
    assert job
    for _ in range(2):
        jobs._execute(app, job)
    queue.finish(job)


def token(message: Message) -> str:
    return str(message.context["link"]).partition("#token=")[2]


def test_a_mail_of_a_job_that_runs_twice_is_the_same(app, outbox):
    make_user(email="ann@example.com")
    links.forgot_password(email="ann@example.com")
    run_twice(app)
    first, second = outbox
    assert (first.id, first.text) == (second.id, second.text)
    # The link of the first is good, and good once.
    links.reset_password(token=token(first), password=PASSWORD)
    with pytest.raises(links.InvalidLink):
        links.reset_password(token=token(second), password=PASSWORD)


def test_a_registration_that_runs_twice_has_one_link(app, outbox):
    links.register(email="bob@example.com", password=PASSWORD)
    run_twice(app)
    first, second = outbox
    assert (first.id, first.text) == (second.id, second.text)
    assert links.verify_email(token=token(first)).email_verified


def test_mails_of_two_jobs_are_two(app, outbox):
    make_user(email="ann@example.com")
    for _ in range(2):
        links.forgot_password(email="ann@example.com")
    jobs.run_pending(app)
    first, second = outbox
    assert first.id != second.id
    assert token(first) != token(second)


def test_outside_of_jobs_nothing_is_the_same():
    assert jobs.current_key() != jobs.current_key()
