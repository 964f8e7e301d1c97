"""What tests ask about accounts, sessions and the database."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, event

from project.auth import service
from project.auth.models import Session
from project.auth.service import InvalidCredentials
from project.security import Claims, SessionRevoked, TokenKind

ANN = "ann@example.com"


def signs_in(password: str, email: str = ANN) -> bool:
    """Tell whether a password opens a session."""
    try:
        service.login(email=email, password=password)
    except InvalidCredentials:
        return False
    return True


def claims_for(session: Session, kind: TokenKind = TokenKind.ACCESS) -> Claims:
    """The claims of a session's newest token of a kind."""
    return Claims(kind, session.user_id, session.id, session.refresh_jti, session.refresh_expires_at)


def is_alive(session: Session) -> bool:
    """Tell whether the access tokens of a session are good."""
    try:
        service.load_principal(claims_for(session))
    except SessionRevoked:
        return False
    return True


@contextmanager
def statements_on(engine: Engine) -> Iterator[list[str]]:
    """The statements that are sent to a database meanwhile."""
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)
