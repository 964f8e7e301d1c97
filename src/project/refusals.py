"""Requests that are refused before the application hears of them, because they cannot be parsed."""

import logging
import uuid

import orjson

from project.errors import PROBLEM_TYPE, REGISTRY
from project.headers import DEFAULTS, STRICT_TRANSPORT

logger = logging.getLogger(__name__)


def refusal(name: str, ip: str | None) -> tuple[int, dict[str, str], bytes]:
    """Log that a request was refused, and return the status, the headers and the body of the answer."""
    code, request_id = REGISTRY[name], str(uuid.uuid4())
    logger.info("request_refused", extra={"code": name, "status": code.status, "ip": ip, "request_id": request_id})
    about = {"type": f"/errors#{name}", "title": code.title, "status": code.status, "detail": code.title}
    body = orjson.dumps({**about, "code": name, "request_id": request_id})
    headers = {
        **DEFAULTS,
        # Browsers take no notice of it where it did not come over https.
        "Strict-Transport-Security": STRICT_TRANSPORT,
        "Cache-Control": "no-store",
        "Connection": "close",
        "Content-Length": str(len(body)),
        "Content-Type": PROBLEM_TYPE,
        "X-Request-ID": request_id,
    }
    return code.status, headers, body
