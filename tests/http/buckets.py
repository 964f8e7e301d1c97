"""Files in a bucket: where the API sends its clients for the bytes, followed once and checked on the way."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

SECONDS = 15
# What a client that is sent elsewhere for a file takes along is which part it wants, and never who it is. What a bucket
# makes of no range at all is not for us to say.
RANGE = re.compile("bytes=([0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})", re.IGNORECASE)
# What the answer of the bucket says of the bytes; of the way there the API has said the rest.
OF_THE_BYTES = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "Last-Modified",
)
REDIRECT_SECONDS = 60


def follow(redirect: Mapping[str, str], sent: Mapping[str, str], base_url: str) -> requests.Response:
    """Go where a 302 leads, and return the answer with what both have said of it.

    Where the bytes have gone in the meantime it is a 404, or a 403: a bucket need not tell strangers what it has.
    """
    location = redirect["Location"]
    check_signed(location, base_url)
    with requests.Session() as session:
        session.trust_env = False
        asked = CaseInsensitiveDict(sent)
        # A bucket does not know our tags, and to whoever has another version it sends the whole.
        wanted = "" if "If-Range" in asked else asked.get("Range", "")
        # Else the library would ask for compressed bytes, of which the length is another.
        taken = {"Accept-Encoding": "identity"} | ({"Range": wanted.lower()} if RANGE.fullmatch(wanted) else {})
        found = session.get(location, headers=taken, timeout=SECONDS, allow_redirects=False)
    assert found.status_code in {200, 206, 403, 404}, found.text
    headers = CaseInsensitiveDict({name: value for name, value in redirect.items() if name.lower() != "location"})
    for name in OF_THE_BYTES:
        headers.pop(name, None)
    headers.update({name: found.headers[name] for name in OF_THE_BYTES if name in found.headers})
    if found.ok:
        check_told(location, headers)
    found.headers = headers
    return found


def check_signed(location: str, base_url: str) -> None:
    """Check that an address is elsewhere, signed, and good for a minute only."""
    url = urlsplit(location)
    query = parse_qs(url.query, strict_parsing=True)
    assert url.netloc != urlsplit(base_url).netloc
    assert re.fullmatch("[0-9a-f]{64}", query["X-Amz-Signature"][0])
    assert query["X-Amz-SignedHeaders"] == ["host"]
    assert 0 < int(query["X-Amz-Expires"][0]) <= REDIRECT_SECONDS


def check_told(location: str, headers: Mapping[str, str]) -> None:
    """Check that the bucket says of the bytes what the signed address tells it to."""
    query = parse_qs(urlsplit(location).query)
    assert headers["Content-Type"] == query["response-content-type"][0]
    assert headers["Content-Disposition"] == query["response-content-disposition"][0]
