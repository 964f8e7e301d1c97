"""The books as a table for other programs."""

import csv
import io
from collections.abc import Iterable, Iterator

from flask import Response, stream_with_context

from project.payments.journal import LedgerEntry
from project.payments.staff_schemas import LedgerEntryOut


def as_csv(entries: Iterable[LedgerEntry]) -> Response:
    """Return entries as a table whose first line names the fields."""
    schema = LedgerEntryOut()

    def lines() -> Iterator[str]:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(schema.fields)
        for entry in entries:
            writer.writerow(schema.dump(entry).values())
            yield out.getvalue()
            out.seek(0)
            out.truncate()
        yield out.getvalue()

    return Response(stream_with_context(lines()), content_type="text/csv; charset=utf-8")
