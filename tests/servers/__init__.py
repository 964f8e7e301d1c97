"""Real servers for tests: PostgreSQL and Valkey from wheels, and the application under gunicorn.

Nothing has to be installed on the machine, and nothing outside a temporary directory is touched.
"""

from tests.servers.app import AppServer, run_server
from tests.servers.postgres import create_database, drop_database, ensure_template, run_postgres
from tests.servers.valkey import run_valkey

__all__ = [
    "AppServer",
    "create_database",
    "drop_database",
    "ensure_template",
    "run_postgres",
    "run_server",
    "run_valkey",
]
