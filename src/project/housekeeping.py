"""What is deleted when its time is over; runs every hour, and as `flask housekeeping`."""

from project import idempotency_keys, jobs
from project.auth import links, sessions
from project.files import sweep


@jobs.periodic("23 * * * *")
def clean_up() -> None:
    """Delete expired sessions, links, networks, idempotency keys and uploads, and jobs given up long ago."""
    sessions.purge()
    links.purge()
    idempotency_keys.purge()
    sweep.end_stale()
    jobs.forget_failed()
