"""What a WSGI server and the `flask` command load: the application, made from the environment."""

import sys

from project import create_app
from project.environment import ConfigError

try:
    app = create_app()
except ConfigError as error:
    print(f"Refusing to start: {error}.", file=sys.stderr)  # noqa: T201
    # The code by which gunicorn knows that starting the worker again would not help.
    sys.exit(3)
