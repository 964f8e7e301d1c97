"""nginx with the configuration of our deployment before the application, and beside it a folder of its own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.stack import LOCAL, SPOOLS
from tests.servers import NGINX
from tests.servers.process import free_port, running, scratch_directory

ROOT = Path(__file__).resolve().parents[1]
LISTEN = """{spools}
server {{
    listen 127.0.0.1:{port};
    server_name 127.0.0.1;
    access_log {folder}/access.log json;
    set $files_root "{files}";
    location /static/ {{
        alias {static}/;
    }}
    include server.conf;
}}
"""
UPSTREAM = """upstream project {{
    server 127.0.0.1:{app_port};
    keepalive 64;
}}
"""


@contextmanager
def run_nginx(app_port: int, *, files: Path, static: Path) -> Iterator[str]:
    """Serve the application at `app_port`, its files, and `static` at /static/; give the URL."""
    port = free_port()
    with scratch_directory("bench-nginx-") as folder:
        for source in (ROOT / "deploy" / "nginx").glob("*.conf"):
            shutil.copy(source, folder)
        known = {
            # Started by root it would become nobody, who may not read what the application writes.
            "user": "user root;" if os.geteuid() == 0 else "",
            "spools": "".join(f"{name}_temp_path {folder}/{name};\n" for name in (*SPOOLS, "client_body")),
            "folder": folder,
            "port": port,
            "app_port": app_port,
            "files": files,
            "static": static,
        }
        (folder / "local.conf").write_text(LOCAL.format(**known))
        (folder / "listen.conf").write_text(LISTEN.format(**known))
        (folder / "upstream.conf").write_text(UPSTREAM.format(**known))
        pid = folder / "pid"
        command = [NGINX or "nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with running(command, log=folder / "log", ready=pid.exists):
            yield f"http://127.0.0.1:{port}"
