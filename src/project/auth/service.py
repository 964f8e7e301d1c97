"""Signing in, staying signed in and signing out; and the principal of a request."""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import and_, bindparam, select, update

from project import audit, metrics
from project.auth.links import send_notice, send_verification
from project.auth.models import SESSIONS, KnownNetwork, Session
from project.auth.passwords import hash_password, hashing, needs_rehash, verify_password
from project.auth.sessions import KNOWN_NETWORK_LIFETIME, is_alive, revoke
from project.database import db, give_back, insert, run, transaction, utcnow, uuid7
from project.errors import Unauthorized
from project.jobs import defer, task
from project.limits import network, refill, spend
from project.observability import origin
from project.security import Claims, Principal, SessionRevoked
from project.users import service as users
from project.users.models import SHOWN, USERS, User

logger = logging.getLogger(__name__)

REFRESH_IDLE = timedelta(days=14)
SESSION_LIFETIME = timedelta(days=90)
# A client that lost the answer, or a second tab, may present the token just replaced for this long.
SUCCESSOR_GRACE = timedelta(seconds=10)


class InvalidCredentials(Unauthorized):
    """401 at login: one answer for an unknown address, a wrong password, an unverified or inactive account."""

    code = "invalid_credentials"
    message = "The e-mail address or the password is wrong, or the account cannot sign in."
    cure = "Check both; confirm the address by the mail you got; or reset the password."


class TokenReused(Unauthorized):
    """401: a refresh token that was replaced a while ago came back, so a copy of it is about."""

    code = "token_reused"
    message = "This refresh token was used before; its session has been ended."
    cure = "Sign in again. Keep only the newest refresh token, and refresh from one place."


# The caller of a request. It is asked for with each one, so it is made once, and gives a row rather than an object.
_PRINCIPAL = (
    select(*SHOWN)
    .join(SESSIONS, SESSIONS.c.user_id == USERS.c.id)
    .where(SESSIONS.c.id == bindparam("session_id"), USERS.c.id == bindparam("user_id"), is_alive(bindparam("now")))
)


@dataclass(frozen=True)
class SignIn:
    """A session together with its account, from which tokens are issued. `fresh`: a password was just given."""

    session: Session
    user: User
    fresh: bool


def login(*, email: str, password: str) -> SignIn:
    """Sign in with a password; exactly one Argon2 verification whatever the outcome.

    Raises:
        RateLimited: before the password is looked at. InvalidCredentials. Unavailable: too many at once.
    """
    client_network = network(origin().ip)
    with hashing():  # first, so that of a storm of sign-ins only those cost anything, attempts too, that are looked at
        user, known = _find_candidate(email, client_network)
        _spend_attempt(email, client_network, known=known)
        give_back()  # whoever waits for a hash needs no connection
        fits = verify_password(password, user.password_hash if user else None)
    if user is None or not fits or not user.is_active or not user.email_verified:
        # The same work for each cause, an unverified account with the right password included.
        with transaction():
            defer(after_refusal, email=email, password_fits=fits)
        metrics.LOGINS.labels("failure").inc()
        logger.info("login_refused")
        raise InvalidCredentials()
    sign_in = _open_session(user, password, client_network)
    refill("login_network", *_attempt_key(email, client_network))
    return sign_in


@task
def after_refusal(*, email: str, password_fits: bool) -> None:
    """Mail its link again to somebody who knows the password and has not confirmed the address yet."""
    if password_fits:
        send_verification(email=email)


def _find_candidate(email: str, client_network: str) -> tuple[User | None, bool]:
    is_known = and_(
        KnownNetwork.user_id == User.id,
        KnownNetwork.network == client_network,
        KnownNetwork.last_login_at > utcnow() - KNOWN_NETWORK_LIFETIME,
    )
    found = db.session.execute(
        select(User, KnownNetwork.network).outerjoin(KnownNetwork, is_known).where(User.email == email)
    ).first()
    return (found[0], found[1] is not None) if found else (None, False)


def _attempt_key(email: str, client_network: str) -> tuple[str, str]:
    return hashlib.sha256(email.encode()).hexdigest()[:32], client_network


def _spend_attempt(email: str, client_network: str, *, known: bool) -> None:
    """Count an attempt against the network, and against what all strangers have together.

    A network that the owner signs in from has its own budget alone, so that strangers cannot lock the owner out.
    """
    account, _ = key = _attempt_key(email, client_network)
    spend("login_network", *key)
    if not known:
        spend("login_account", account)


def _open_session(user: User, password: str, client_network: str) -> SignIn:
    now = utcnow()
    verified_hash = user.password_hash
    new_hash = hash_password(password) if verified_hash and needs_rehash(verified_hash) else verified_hash
    # Guarded by what was verified: a password changed or an account deactivated meanwhile must win.
    admit = (
        update(User)
        .where(User.id == user.id, User.is_active, User.email_verified, User.password_hash == verified_hash)
        .values(last_login_at=now, password_hash=new_hash, version=User.version + 1, updated_at=User.updated_at)
        .returning(User)
    )
    with transaction():
        admitted = db.session.scalar(admit, execution_options={"populate_existing": True})
        if admitted is None:
            raise InvalidCredentials()
        session = _new_session(admitted, now)
        db.session.add(session)
        _remember_network(user.id, client_network, now)
        audit.record("login", actor_id=user.id, target_type="session", target_id=session.id)
    metrics.LOGINS.labels("success").inc()
    return SignIn(session, admitted, fresh=True)


def _new_session(user: User, now: datetime) -> Session:
    issued_at = now.replace(microsecond=0)
    return Session(
        id=uuid7(),
        user_id=user.id,
        epoch=user.session_epoch,
        last_used_at=now,
        expires_at=issued_at + SESSION_LIFETIME,
        ip=origin().ip,
        user_agent=origin().user_agent,
        refresh_jti=uuid7(),
        refresh_issued_at=issued_at,
        refresh_expires_at=issued_at + REFRESH_IDLE,
    )


def _remember_network(user_id: UUID, client_network: str, now: datetime) -> None:
    row = {"user_id": user_id, "network": client_network, "last_login_at": now}
    db.session.execute(
        insert(KnownNetwork)
        .values(row)
        .on_conflict_do_update(index_elements=["user_id", "network"], set_={"last_login_at": now})
    )


def load_principal(claims: Claims) -> Principal:
    """Return the caller that an access token points at, in one query: revocation and roles act at once.

    Raises:
        SessionRevoked.
    """
    values = {"session_id": claims.session_id, "user_id": claims.user_id, "now": utcnow()}
    found = run(_PRINCIPAL, values)
    if not found:
        raise SessionRevoked()
    return Principal(account=found[0], session_id=claims.session_id)


def refresh(claims: Claims) -> SignIn:
    """Replace a refresh token by its successor: compare-and-swap on the session row.

    The token just replaced may come again for 10 s while its successor is unused, and gets the same successor.

    Raises:
        TokenReused: anything older, which ends the session. SessionRevoked.
    """
    rotated = _rotate(claims)
    if rotated is not None:
        # As it was written: read again, it might already be a step further.
        return SignIn(rotated, users.get_user(claims.user_id), fresh=False)
    found = _find_live_session(claims)
    if found is None:
        raise SessionRevoked()
    session, user = found
    if session.previous_jti != claims.jti or not _in_grace(session.rotated_at):
        _end_reused(session, user)
        raise TokenReused()
    return SignIn(session, user, fresh=False)


def _in_grace(rotated_at: datetime | None) -> bool:
    return rotated_at is not None and rotated_at > utcnow() - SUCCESSOR_GRACE


def _rotate(claims: Claims) -> Session | None:
    """Put a successor in the place of the presented token, if that is still the live one, and return the row so."""
    now = utcnow()
    issued_at = now.replace(microsecond=0)
    session = db.session.get(Session, claims.session_id)
    if session is None or session.refresh_jti != claims.jti:
        return None
    owner = select(User.id).where(User.id == Session.user_id, User.id == claims.user_id, is_alive(now))
    is_owned = owner.correlate(Session).exists()
    with transaction():
        rotated: Session | None = db.session.scalar(
            update(Session)
            .where(Session.id == claims.session_id, Session.refresh_jti == claims.jti, is_owned)
            .values(
                previous_jti=claims.jti,
                rotated_at=now,
                last_used_at=now,
                refresh_jti=uuid7(),
                refresh_issued_at=issued_at,
                refresh_expires_at=min(issued_at + REFRESH_IDLE, session.expires_at),
            )
            .returning(Session),
            execution_options={"populate_existing": True},
        )
    return rotated


def _find_live_session(claims: Claims) -> tuple[Session, User] | None:
    found = db.session.execute(
        select(Session, User)
        .join(User, User.id == Session.user_id)
        .where(Session.id == claims.session_id, User.id == claims.user_id, is_alive(utcnow())),
        execution_options={"populate_existing": True},
    ).first()
    return (found[0], found[1]) if found else None


def _end_reused(session: Session, user: User) -> None:
    with transaction():
        if revoke("token_reused", Session.id == session.id):
            audit.record("token_reused", actor_id=user.id, target_type="session", target_id=session.id)
            defer(send_notice, template="sessions_ended", to=user.email)


def logout(claims: Claims) -> None:
    """End the session of an access or refresh token.

    Raises:
        SessionRevoked: it had ended before.
    """
    if _find_live_session(claims) is None:
        raise SessionRevoked()
    with transaction():
        if not revoke("logout", Session.id == claims.session_id):
            raise SessionRevoked()
        audit.record("logout", actor_id=claims.user_id, target_type="session", target_id=claims.session_id)
