"""nginx before a server of a test, with the configuration of production (deploy/nginx)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.servers import NGINX
from tests.servers.app import ROOT
from tests.servers.process import free_port, listens, running, scratch_directory

# What each machine has of its own.
LOCAL = """{user}
daemon off;
pid {folder}/pid;
error_log stderr warn;
"""
LISTEN = """server {{
    listen 127.0.0.1:{port};
    access_log {folder}/access.log json;
    client_body_temp_path {folder}/body;
    set $files_root "{files}";
    include server.conf;
}}
"""
UPSTREAM = """proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/fastcgi;
uwsgi_temp_path {folder}/uwsgi;
scgi_temp_path {folder}/scgi;
upstream project {{
    server 127.0.0.1:{app_port};
    keepalive 64;
}}
"""


@dataclass(frozen=True)
class Front:
    """A running nginx: its address, and where it writes one line for each request."""

    url: str
    access_log: Path


@contextmanager
def run_front(app_port: int, storage_url: str, *, buffering: bool = False) -> Iterator[Front]:
    """Run nginx before the server at `app_port`, whose PROXY_HOPS is 1. Only where NGINX is not None.

    With `buffering` it takes uploads to itself first, as docs/operations.md wants it before granian.
    """
    assert NGINX is not None
    port = free_port()
    with scratch_directory("project-front-") as folder:
        for source in (ROOT / "deploy" / "nginx").glob("*.conf"):
            shutil.copy(source, folder)
        known = {
            # Started by root it would become nobody, who may not come here.
            "user": "user root;" if os.geteuid() == 0 else "",
            "folder": folder,
            "port": port,
            "app_port": app_port,
            "files": unquote(urlsplit(storage_url).path),
        }
        if buffering:
            server = folder / "server.conf"
            server.write_text(server.read_text().replace("proxy_request_buffering off;", "proxy_request_buffering on;"))
        for name, text in {"local": LOCAL, "listen": LISTEN, "upstream": UPSTREAM}.items():
            (folder / f"{name}.conf").write_text(text.format_map(known))
        command = [NGINX, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        with running(command, log=folder / "log", ready=lambda: listens(port)):
            yield Front(f"http://127.0.0.1:{port}", folder / "access.log")
