"""The settings of files: where they are kept, who sends them, and what may be uploaded."""

import importlib.util
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl

from project.environment import ConfigError, Reader, split_url


class Delivery(StrEnum):
    """Who sends the bytes of a file on local disk: the application, or nginx when told where they are."""

    APP = "app"
    X_ACCEL = "x-accel"


@dataclass(frozen=True)
class Files:
    """Where files are kept, who sends them, and what may be uploaded; sizes in bytes."""

    storage_url: str
    delivery: Delivery
    max_size: int
    quota: int
    allowed_types: list[str]


def read_files(read: Reader, data_dir: Path) -> Files:
    """Read and check what concerns files.

    Raises:
        ConfigError: a variable is wrong, or what the storage needs is not installed.
    """
    return Files(
        storage_url=_storage_url(read, data_dir),
        delivery=read.parse("FILES_DELIVERY", "app", Delivery, "app or x-accel"),
        max_size=read.size("FILES_MAX_SIZE", "100 MiB"),
        quota=read.size("FILES_QUOTA", "1 GiB"),
        allowed_types=read.types("FILES_ALLOWED_TYPES", "*/*"),
    )


def _storage_url(read: Reader, data_dir: Path) -> str:
    expected = "file:///absolute/path or s3://bucket/prefix, perhaps with ?endpoint=https://…&region=…"
    url = read.parse("STORAGE_URL", (data_dir / "files").as_uri(), _storage, expected)
    if url.startswith("s3:") and importlib.util.find_spec("boto3") is None:
        raise ConfigError("STORAGE_URL needs boto3 for s3: install requirements/s3.txt")
    return url


def _storage(url: str) -> str:
    parts = split_url(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "s3":
        endpoint = split_url(options.get("endpoint", "https://default"))
        valid = parts.netloc and endpoint.scheme in {"http", "https"} and set(options) <= {"endpoint", "region"}
    else:
        valid = parts.scheme == "file" and not parts.netloc and not options and parts.path.startswith("/")
    if not valid:
        raise ValueError("no storage")
    return url
