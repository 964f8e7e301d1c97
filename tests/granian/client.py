"""What the tests of granian ask its servers for."""

import requests

from tests.http.client import eventually
from tests.servers import AppServer

CHUNKED = "Transfer-Encoding: chunked"
JSON, BINARY = "application/json", "application/octet-stream"
ME = "/v1/users/me"
RAW = "/v1/files/raw?filename=a.bin"
# The largest file.
SIZE = 200_000
# What the process of the server knows of itself, and no request may say.
OWN = {"HTTP_AUTHORIZATION": "Bearer of-the-process", "HTTP_X_REQUEST_ID": "of-the-process", "CONTENT_LENGTH": "5"}


def headers_of(token: str, *more: str, content_type: str = JSON) -> list[str]:
    return [f"Authorization: Bearer {token}", f"Content-Type: {content_type}", *more]


def name_of(server: AppServer, token: str) -> str:
    answer = requests.get(f"{server.url}{ME}", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    return str(answer.json()["data"]["name"])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def check_nothing_is_stored(server: AppServer, token: str) -> None:
    """Wait until the account has no file and none is under way: what was deleted goes moments later."""
    authorized = {"Authorization": f"Bearer {token}"}

    def look() -> bool | None:
        usage = requests.get(f"{server.url}/v1/files/usage", headers=authorized, timeout=10).json()["data"]
        return (usage["used"], usage["reserved"], usage["file_count"]) == (0, 0, 0) or None

    eventually(look, "an account without files")
