"""The books as a table for other programs: CSV (RFC 4180), sent while it is read."""

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from tempfile import TemporaryFile
from typing import Any

import orjson
from flask import Response, request, stream_with_context
from werkzeug.wsgi import wrap_file

from project.json import dumps
from project.payments.journal import LedgerEntry
from project.payments.staff_schemas import LedgerEntryOut

FILENAME = "ledger.csv"
# A spreadsheet takes what begins so for a formula, and would run it: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(batches: Iterable[Iterable[LedgerEntry]]) -> Response:
    """Answer with batches of entries as a table whose first line names the fields; there is at least one batch.

    What fails before the first byte is answered with a problem. Later nothing can be said any more: the error goes
    on to the server, which closes the connection without the chunk that ends a body (RFC 9112 §8), so that no client
    takes the part for the whole. HTTP/1.0, in which nginx asks unless it is told otherwise, has no chunks: there the
    table is written to a file first, and sent with its length.
    """
    blocks = _blocks(batches)
    if request.environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        response = _with_length(blocks)
    else:
        response = Response(stream_with_context(chain([next(blocks)], blocks)))
    response.headers["Content-Type"] = "text/csv; charset=utf-8; header=present"
    response.headers["Content-Disposition"] = f'attachment; filename="{FILENAME}"'
    return response


def _with_length(blocks: Iterator[str]) -> Response:
    with ExitStack() as opened:
        file = opened.enter_context(TemporaryFile())
        for block in blocks:
            file.write(block.encode())
        size = file.tell()
        file.seek(0)
        # From here on whoever sends the response closes the file.
        opened.pop_all()
    body = wrap_file(request.environ, file)
    return Response(body, headers={"Content-Length": str(size)}, direct_passthrough=True)


def _blocks(batches: Iterable[Iterable[LedgerEntry]]) -> Iterator[str]:
    """Write each batch as lines of text, the first with the header above it."""
    schema = LedgerEntryOut()
    head: list[Iterable[Any]] = [schema.fields]
    for batch in batches:
        out = io.StringIO()
        entries = orjson.loads(dumps(schema.dump(batch, many=True)))  # as the API shows them
        csv.writer(out).writerows(chain(head, (map(_cell, entry.values()) for entry in entries)))
        yield out.getvalue()
        head = []


def _cell(value: Any) -> Any:
    """Return a value such that a spreadsheet shows it as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
