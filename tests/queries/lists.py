"""The lists, with values for each of their filters: common ones, rare ones, and some that nothing has.

A list, a sort or a filter that is new fails its tests until it is here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from project import audit
from project.auth.models import SESSION_SORTS
from project.auth.schemas import SessionQuery
from project.database import utcnow
from project.files.content_schemas import ShareListQuery
from project.files.models import SHARE_SORTS
from project.files.models import SORTS as FILE_SORTS
from project.files.schemas import FileQuery
from project.payments.journal import ENTRY_SORTS, EVENT_SORTS, TIMELINE_SORTS
from project.payments.models import DISPUTE_SORTS, PAYMENT_SORTS, PRICE_SORTS, REFUND_SORTS
from project.payments.schemas import PaymentQuery, PriceQuery, RefundQuery
from project.payments.staff_schemas import DisputeQuery, EventQuery, LedgerQuery, TimelineQuery
from project.schemas import Schema
from project.users.models import SORTS as USER_SORTS
from project.users.schemas import AuditQuery, UserQuery
from tests.queries.seeding import ADMIN, HEAVY, numbered

# Those of every list, and whose things it shows.
COMMON = {"limit", "cursor", "include_total", "sort", "scope", "user_id"}
SOME = str(numbered(4710))


def _ago(**time: int) -> str:
    return f"{utcnow() - timedelta(**time):%Y-%m-%dT%H:%M:%SZ}"


# Few and many: rows are 30 seconds apart.
AGES = [_ago(minutes=5), _ago(days=30)]


@dataclass(frozen=True)
class Listing:
    """A list as somebody sees it: `whose` is who asks, `fixed` what every query has.

    With `bounded` its rows are those of one account: with a filter it may look at all of them, `unfiltered` says at how
    many without one. Of the others it may look at as many as any statement.
    """

    route: str
    query: type[Schema]
    sorts: Mapping[str, Any]
    filters: dict[str, list[str]] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    whose: int = ADMIN
    bounded: bool = False
    unfiltered: int = 50

    @property
    def name(self) -> str:
        """What it is called in the names of tests."""
        return "?".join([self.route, *self.fixed])

    @property
    def path(self) -> str:
        """Its path, of some thing where it is that of a thing."""
        return self.route.format(payment_id=SOME, file_id=SOME)

    def queries(self) -> Iterator[dict[str, str]]:
        """Every sort in both directions, with no filter and with each value of each."""
        chosen = [{}, *({name: value} for name, values in self.filters.items() for value in values)]
        for sort in self.sorts:
            for direction in ("", "-"):
                for one in chosen:
                    yield {"sort": direction + sort, **self.fixed, **one}

    def missing(self) -> set[str]:
        """The filters of which there are no values here."""
        accepted = {known.data_key or name for name, known in self.query().fields.items()}
        return accepted - COMMON - set(self.filters)


FILE_FILTERS = {
    "q": ["zebulon", "pdf", "r12345"],
    "visibility": ["public", "private"],
    "purpose": ["avatar", "nothing"],
    "type": ["image/png", "image/*", "font/woff2", "model/*", "audio/*"],
    "created_after": AGES,
}
PAYMENT_FILTERS = {
    "status": ["succeeded", "created", "requires_capture", "failed"],
    "reference": ["order-4711", "nothing"],
    "created_after": AGES,
}
ALL = {"scope": "all"}
LISTS = [
    Listing(
        "/v1/users",
        UserQuery,
        USER_SORTS,
        {
            "q": ["zebulon", "x.org", "u12345", "nothing"],
            "role": ["admin", "staff", "user"],
            "is_active": ["true", "false"],
            "created_after": AGES,
        },
    ),
    Listing("/v1/auth/sessions", SessionQuery, SESSION_SORTS, whose=HEAVY, bounded=True, unfiltered=5000),
    Listing(
        "/v1/audit-events",
        AuditQuery,
        audit.SORTS,
        {
            "actor_id": [str(numbered(ADMIN)), SOME],
            "target_id": [SOME],
            "action": ["login", "role_changed", "nothing"],
            "from": AGES,
            "to": [_ago(days=340)],
        },
    ),
    Listing("/v1/files", FileQuery, FILE_SORTS, FILE_FILTERS, ALL),
    Listing("/v1/files", FileQuery, FILE_SORTS, FILE_FILTERS, {"user_id": str(numbered(HEAVY))}, bounded=True),
    Listing("/v1/files/{file_id}/shares", ShareListQuery, SHARE_SORTS, whose=HEAVY),
    Listing("/v1/prices", PriceQuery, PRICE_SORTS, {"active": ["true", "false"]}, unfiltered=200),
    Listing("/v1/payments", PaymentQuery, PAYMENT_SORTS, PAYMENT_FILTERS, ALL),
    Listing("/v1/payments", PaymentQuery, PAYMENT_SORTS, PAYMENT_FILTERS, whose=HEAVY, bounded=True),
    Listing("/v1/payments/{payment_id}/refunds", RefundQuery, REFUND_SORTS),
    Listing("/v1/payments/{payment_id}/timeline", TimelineQuery, TIMELINE_SORTS),
    Listing("/v1/payments/disputes", DisputeQuery, DISPUTE_SORTS, {"payment_id": [SOME]}),
    Listing("/v1/payments/events", EventQuery, EVENT_SORTS, {"status": ["processed", "failed", "received", "ignored"]}),
    Listing(
        "/v1/ledger/entries",
        LedgerQuery,
        ENTRY_SORTS,
        {
            "account": ["income:payments", "assets:disputes_held", "nothing"],
            "payment_id": [SOME],
            "from": AGES,
            "to": [_ago(days=340)],
        },
    ),
]
