"""What a page of a list costs in the middle of a short table and of a long one."""

from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

from bench import load
from bench.contenders import CONNECTIONS, OURS, Server, serving
from bench.load import Request
from bench.pace import Pace
from bench.seed import seeded_time
from bench.workloads import PAGES, make_callers, walk


def measure(databases: dict[int, str], pace: Pace) -> dict[str, Any]:
    """Return the pages a second by the number of rows, in each round."""
    found: dict[str, list[float]] = {str(rows): [] for rows in databases}
    with ExitStack() as stack:
        servers = {rows: stack.enter_context(serving(OURS, url)) for rows, url in databases.items()}
        files = {
            rows: load.write_requests(pace.folder / f"depth-{rows}", _middle(servers[rows], url, rows))
            for rows, url in databases.items()
        }
        for number in range(pace.rounds):
            for rows, server in servers.items():
                load.run(server.url, files[rows], connections=CONNECTIONS, seconds=1)
                run = load.run(server.url, files[rows], connections=CONNECTIONS, seconds=pace.seconds)
                found[str(rows)].append(round(run.rate, 2))
                pace.say(f"depth round {number + 1}/{pace.rounds} {rows} rows: {run.rate:.0f} pages/s")
    return found


def _middle(server: Server, database_url: str, rows: int) -> list[Request]:
    """Return the requests for pages that begin in the middle of the table."""
    middle = quote(seeded_time(database_url, rows // 2))
    staff = make_callers(database_url, rows).staff
    path = f"/v1/users?sort=created_at&created_after={middle}&"
    # Of a thousand rows there are not more than so many pages in the second half.
    return [request for token in staff for request in walk(server, token, path, min(PAGES, 5))]
