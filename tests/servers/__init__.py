"""Real servers for tests: PostgreSQL and Valkey from wheels, S3 from moto, and the application under gunicorn.

Nothing but nginx has to be installed on the machine, and nothing outside a temporary directory is touched.
"""

from tests.servers.app import AppServer, run_server
from tests.servers.nginx import NGINX, run_nginx
from tests.servers.postgres import create_database, drop_database, ensure_template, run_postgres
from tests.servers.s3 import CREDENTIALS, make_bucket, run_s3
from tests.servers.valkey import run_valkey

__all__ = [
    "CREDENTIALS",
    "NGINX",
    "AppServer",
    "create_database",
    "drop_database",
    "ensure_template",
    "make_bucket",
    "run_nginx",
    "run_postgres",
    "run_s3",
    "run_server",
    "run_valkey",
]
