"""What is deleted when its time is over; runs every hour, and as `flask housekeeping`."""

from project import idempotency_keys, jobs
from project.auth import links, sessions
from project.payments import inbox
from project.payments.sandbox import events, keys


@jobs.periodic("23 * * * *")
def clean_up() -> None:
    """Delete expired sessions, links, known networks and keys, what old events said, and jobs given up long ago."""
    sessions.purge()
    links.purge()
    idempotency_keys.purge()
    inbox.purge_payloads()
    events.purge()
    keys.purge()
    jobs.forget_failed()
