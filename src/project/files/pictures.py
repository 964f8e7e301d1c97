"""How pictures are put together: their size, and a copy without metadata. Nothing is decoded here.

Pillow reads every comment, text and profile of a picture when it opens it, some of them at a thousand times their
size, and decoders begin anew for every scan. Here all that is skipped or counted, so that what is left to do depends
on the number of pixels.
"""

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

# Chunks, segments, blocks. Cameras and programs write some thousands at most.
MAX_PARTS = 100_000
# Each goes over all pixels and may take 20 bytes. Programs write 10.
MAX_SCANS = 100
MAX_SIDE = 2**31 - 1  # in pixels: the PNG specification's limit; the other formats have none so large
MAX_EXIF = 64 * 1024  # in bytes: as much as fits a segment of a JPEG

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# All other chunks are metadata, or frames after the first.
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})

# Not a marker: a fill byte (FF), an escaped FF (00), a restart (D0 to D7).
_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_JPEG_END, _JPEG_SCAN, _JPEG_EXIF = 0xD9, 0xDA, 0xE1
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Comments, and what applications add. Two of the latter stay, JFIF (E0) and Adobe (EE): they say what colours mean.
_JPEG_METADATA = frozenset(range(0xE1, 0xFF)) - {0xEE}
_JPEG_BLOCK = 8192

_ORIENTATION = 0x0112

# A piece of a file: what it is, where it starts, where the next one does.
_PngPart = tuple[bytes, int, int]
_JpegPart = tuple[int, int, int]


class Malformed(Exception):
    """No picture, a cut one, or one with more parts than anybody needs."""


def find_format(file: BinaryIO) -> str:
    """Return what Pillow calls the format of these bytes.

    Raises:
        Malformed: it is none of JPEG, PNG, WEBP and GIF.
    """
    file.seek(0)
    head = file.read(8)
    signatures = {"JPEG": b"\xff\xd8\xff", "PNG": _PNG_SIGNATURE, "WEBP": b"RIFF", "GIF": b"GIF8"}
    for name, signature in signatures.items():
        if head.startswith(signature):
            return name
    raise Malformed()


def read_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height in pixels, from the header.

    Raises:
        Malformed: the header does not say.
    """
    readers = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size, "GIF": _gif_size}
    width, height = readers[find_format(file)](file)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise Malformed()
    return width, height


def strip(file: BinaryIO) -> tuple[BinaryIO, int]:
    """Return the picture without its metadata, and the orientation they tell (Exif: 1 to 8, 1 is upright).

    WebP and GIF come back as they are: Pillow keeps the metadata of the former unread; in the latter there is
    nothing but comments, which `read_size` counts.

    Raises:
        Malformed: it is cut, or has too many parts.
    """
    match find_format(file):
        case "JPEG":
            return _strip_jpeg(file)
        case "PNG":
            return _strip_png(file)
        case "WEBP":
            return file, _orientation(_webp_exif(file))
        case _:
            return file, 1


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise Malformed()
    return data


def _copy(file: BinaryIO, start: int, end: int, target: BinaryIO) -> None:
    file.seek(start)
    target.write(file.read(end - start))


def _orientation(exif: bytes) -> int:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        # Cut or nonsense. The picture may still be fine.
        pass
    return 1


def _png_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(len(_PNG_SIGNATURE))
    kind, width, height = struct.unpack(">4x4sII", _read(file, 16))
    if kind != b"IHDR":
        raise Malformed()
    return width, height


def _png_chunks(file: BinaryIO) -> Iterator[_PngPart]:
    start = len(_PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        file.seek(start)
        length, kind = struct.unpack(">I4s", _read(file, 8))
        end = start + 12 + length
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise Malformed()


def _strip_png(file: BinaryIO) -> tuple[BinaryIO, int]:
    stripped = BytesIO()
    stripped.write(_PNG_SIGNATURE)
    orientation = 1
    for kind, start, end in _png_chunks(file):
        if kind in _PNG_CHUNKS:
            _copy(file, start, end, stripped)
        elif kind == b"eXIf":
            file.seek(start + 8)
            orientation = _orientation(file.read(min(end - start - 12, MAX_EXIF)))
    return stripped, orientation


def _jpeg_segments(file: BinaryIO) -> Iterator[_JpegPart]:
    """Yield the segments. That of a scan includes its pixels, up to the next marker."""
    end = 2
    for _ in range(MAX_PARTS):
        start = _find_marker(file, end)
        file.seek(start + 1)
        marker = file.read(1)[0]
        if marker == _JPEG_END:
            yield marker, start, start + 2
            return
        (length,) = struct.unpack(">H", _read(file, 2))
        end = start + 2 + length
        if marker == _JPEG_SCAN:
            end = _find_marker(file, end)
        yield marker, start, end
    raise Malformed()


def _find_marker(file: BinaryIO, position: int) -> int:
    while True:
        file.seek(position)
        block = file.read(_JPEG_BLOCK)
        if found := _JPEG_MARKER.search(block):
            return position + found.start()
        if len(block) < 2:
            raise Malformed()
        # The last byte may be the first one of a marker.
        position += len(block) - 1


def _jpeg_size(file: BinaryIO) -> tuple[int, int]:
    for marker, start, _ in _jpeg_segments(file):
        if marker in _JPEG_FRAMES:
            file.seek(start + 5)
            height, width = struct.unpack(">HH", _read(file, 4))
            return width, height
        if marker == _JPEG_SCAN:
            break
    raise Malformed()


def _strip_jpeg(file: BinaryIO) -> tuple[BinaryIO, int]:
    # What comes between segments and after the end is left out: fill bytes, which Pillow reads one by one, and what
    # a phone adds to a photo, such as a film.
    stripped = BytesIO()
    stripped.write(b"\xff\xd8")
    orientation, scans = 1, 0
    for marker, start, end in _jpeg_segments(file):
        scans += marker == _JPEG_SCAN
        if scans > MAX_SCANS:
            raise Malformed()
        if marker not in _JPEG_METADATA:
            _copy(file, start, end, stripped)
        elif marker == _JPEG_EXIF:
            file.seek(start + 4)
            data = file.read(end - start - 4)
            if data.startswith(b"Exif\0\0"):
                orientation = _orientation(data[6:])
    return stripped, orientation


def _gif_size(file: BinaryIO) -> tuple[int, int]:
    """Return the size of the screen, or of the first frame where that is larger, as Pillow does."""
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", _read(file, 7))
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, 1)
    in_extension = False
    for _ in range(MAX_PARTS):
        byte = _read(file, 1)
        if in_extension:
            file.seek(byte[0], 1)
            in_extension = byte != b"\0"
        elif byte == b"!":
            file.seek(1, 1)
            in_extension = True
        elif byte == b",":
            left, top, frame_width, frame_height = struct.unpack("<HHHH", _read(file, 8))
            return max(width, left + frame_width), max(height, top + frame_height)
        elif byte == b";":
            break
    raise Malformed()


def _webp_size(file: BinaryIO) -> tuple[int, int]:
    file.seek(8)
    kind, _ = _read(file, 8), _read(file, 4)
    if kind == b"WEBPVP8X":
        chunk = _read(file, 10)
        return 1 + int.from_bytes(chunk[4:7], "little"), 1 + int.from_bytes(chunk[7:], "little")
    if kind == b"WEBPVP8L":
        # Without the signature, 0x2F.
        bits = int.from_bytes(_read(file, 5)[1:], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack("<6xHH", _read(file, 10))
        return width & 0x3FFF, height & 0x3FFF
    raise Malformed()


def _webp_exif(file: BinaryIO) -> bytes:
    position = 12
    for _ in range(MAX_PARTS):
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            return b""
        kind, length = struct.unpack("<4sI", header)
        if kind == b"EXIF":
            return file.read(min(length, MAX_EXIF)).removeprefix(b"Exif\0\0")
        position += 8 + length + (length & 1)
    raise Malformed()
