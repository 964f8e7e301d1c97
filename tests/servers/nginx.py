"""nginx in front of a running application, with the locations that send files (deploy/nginx/files.conf)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.app import ROOT
from tests.servers.process import free_port, listens, running, scratch_directory

# Where packages put it, which for an ordinary user is not always on the PATH.
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *FOLDERS]))

# As little as possible, so that a test sees what the included file does. Of compression there is more than anybody
# would configure: it must not touch files.
CONFIG = """
daemon off;
{user}
worker_processes 1;
pid {root}/pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    sendfile on;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    server_tokens off;
    server {{
        listen 127.0.0.1:{port};
        set $files_root "{files_root}";
        include "{snippet}";
        location / {{
            proxy_pass http://127.0.0.1:{app_port};
            proxy_set_header Host $http_host;
            client_max_body_size 0;
        }}
    }}
}}
"""


@contextmanager
def run_nginx(app_port: int, files_root: Path, port: int | None = None) -> Iterator[str]:
    """Run nginx before the application at `app_port`, and give its URL.

    `files_root` is the folder of the application's STORAGE_URL. Only where NGINX is not None.
    """
    if NGINX is None:
        raise RuntimeError("nginx is not installed")
    port = port or free_port()
    with scratch_directory("project-nginx-") as root:
        config = root / "nginx.conf"
        settings = {
            # Started by root it would become nobody, who may not read what the application of a test writes.
            "user": "user root;" if os.geteuid() == 0 else "",
            "root": root,
            "port": port,
            "app_port": app_port,
            "files_root": files_root,
            "snippet": ROOT / "deploy" / "nginx" / "files.conf",
        }
        config.write_text(CONFIG.format_map(settings))
        # Without -e it would first try to write to /var/log.
        command = [NGINX, "-e", "stderr", "-p", str(root), "-c", str(config)]
        with running(command, log=root / "log", ready=lambda: listens(port)):
            yield f"http://127.0.0.1:{port}"
