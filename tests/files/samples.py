"""Hostile files and small pictures: builders, and samples with what they claim to be and what they are."""

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from PIL import Image

SCRIPT = b"<script>alert(document.domain)</script>"
HTML = b"<!DOCTYPE html><html><body>" + SCRIPT + b"</body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + SCRIPT + b"</svg>"
PDF = b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
OFFICE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@dataclass(frozen=True)
class Sample:
    """A file whose name, declared type and bytes disagree or mean harm, and the type it has to get."""

    name: str
    filename: str
    declared: str
    content: bytes
    effective: str


def picture(kind: str, size: tuple[int, int] = (40, 20), mode: str = "RGB", **options: Any) -> bytes:
    """Make a picture: red, with a blue corner (a quarter) at the top left."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, 0, size[0] // 2, size[1] // 2))
    encoded = BytesIO()
    image.convert(mode).save(encoded, kind, **options)
    return encoded.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    size: tuple[int, int] = (8, 8), *, extra: bytes = b"", depth: int = 8, colour: int = 2, row: bytes = b""
) -> bytes:
    """Make a PNG of a size it need not have, with chunks before its pixels; `row` is one of its eight lines."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress((b"\0" + (row or bytes(24))) * 8))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b"")


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*, extra: bytes, **options: Any) -> bytes:
    """Make a JPEG with segments of one's own at the front."""
    whole = picture("JPEG", **options)
    return whole[:2] + extra + whole[2:]


def exif(orientation: int, *, order: str = ">", text: bytes = b"") -> bytes:
    """Make Exif: an orientation, and a place where GPS data would be."""
    head = b"MM\0*" if order == ">" else b"II*\0"
    entries = struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return head + entries + text


def gif(screen: tuple[int, int] = (8, 8), *, frame: tuple[int, int] = (8, 8), extra: bytes = b"") -> bytes:
    """Make a GIF of sizes it need not have, whose one frame lacks most pixels, with blocks in front of it."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0, 0, 0)
    return head + extra + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\2\x4c\1\0;"


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """Make a chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def webp(*chunks: bytes) -> bytes:
    """Make a WebP of these chunks."""
    return riff_chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def webp_header(width: int, height: int, flags: int = 0) -> bytes:
    """Make the chunk that says how large a WebP is."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sizes)


def webp_frames(count: int) -> bytes:
    """Make an animated WebP of one pixel."""
    pixel = picture("WEBP", (1, 1), lossless=True)[12:]
    frame = riff_chunk(b"ANMF", bytes(12) + b"\1\0\0\0" + pixel)
    return webp(webp_header(1, 1, flags=2), riff_chunk(b"ANIM", bytes(6)), frame * count)


def scans(count: int, size: tuple[int, int] = (8000, 5000)) -> bytes:
    """Make a progressive JPEG whose every scan is a few bytes and goes over all pixels."""
    blocks = (size[0] // 8) * (size[1] // 8)
    run = "0" + "1" * 14  # the end of 32767 blocks
    frame = jpeg_segment(0xC2, struct.pack(">BHHB", 8, size[1], size[0], 1) + b"\1\x11\0")
    tables = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    tables += jpeg_segment(0xC4, b"\0\1" + bytes(16)) + jpeg_segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    bits = run * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    other = jpeg_segment(0xDA, b"\1\1\0\1\x3f\0") + data
    return b"\xff\xd8" + tables + frame + first + other * (count - 1) + b"\xff\xd9"


def isobmff(brand: bytes, compatible: bytes = b"") -> bytes:
    """Make the first box of an MP4, HEIC or AVIF."""
    return struct.pack(">I", 16 + len(compatible)) + b"ftyp" + brand + bytes(4) + compatible + bytes(32)


def zipped(*names: str, content: bytes = b"x", level: int = 9) -> bytes:
    """Make a ZIP with these members."""
    packed = BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED, compresslevel=level) as archive:
        for name in names:
            archive.writestr(name, content)
    return packed.getvalue()


def zip_bomb(depth: int = 20) -> bytes:
    """Make a ZIP of 10 MB of nothing, in a ZIP, and so on."""
    content = zipped("0", content=bytes(10_000_000))
    for level in range(1, depth):
        content = zipped(str(level), content=content)
    return content


BINARY = "application/octet-stream"
POLYGLOTS = (
    Sample("html", "a.html", "text/html", HTML, BINARY),
    Sample("html as text", "a.txt", "text/plain", HTML, BINARY),
    Sample("html as png", "a.png", "image/png", HTML, BINARY),
    Sample("html after a mark and blanks", "a.txt", "text/plain", b"\xef\xbb\xbf \r\n\t" + HTML, BINARY),
    Sample("html as json", "a.json", "application/json", HTML, BINARY),
    Sample("html comment as markdown", "a.md", "text/markdown", b"<!-- -->" + HTML, BINARY),
    Sample("html in utf-16 as text", "a.txt", "text/plain", HTML.decode().encode("utf-16"), BINARY),
    Sample("html after a nul as text", "a.txt", "text/plain", b"\0" + HTML, BINARY),
    Sample("html with a picture in it", "a.html", "image/png", HTML + picture("PNG"), BINARY),
    Sample("svg", "a.svg", "image/svg+xml", SVG, BINARY),
    Sample("svg as png", "a.png", "image/png", b'<?xml version="1.0"?>' + SVG, BINARY),
    Sample("svg as text", "a.txt", "text/plain", b'<?xml version="1.0"?>' + SVG, BINARY),
    Sample("svg, packed", "a.svgz", "image/svg+xml", gzip.compress(SVG, mtime=0), "application/gzip"),
    Sample("xhtml", "a.xhtml", "application/xhtml+xml", b'<html xmlns="http://www.w3.org/1999/xhtml"/>', BINARY),
    Sample("xml with a stylesheet", "a.xml", "text/xml", b'<?xml-stylesheet href="x.xsl"?><a/>', BINARY),
    Sample("mhtml", "a.mht", "message/rfc822", b"MIME-Version: 1.0\r\n\r\n" + HTML, BINARY),
    Sample("script", "a.js", "text/javascript", b"alert(1)", BINARY),
    Sample("script as text", "a.js", "text/plain", b"alert(1)", "text/plain"),
    Sample("shell script", "a.sh", "text/x-sh", b"#!/bin/sh\nrm -rf ~", BINARY),
    Sample("gif and script", "a.gif", "text/javascript", b"GIF89a=1;alert(1)//", "image/gif"),
    Sample("gif and script as text", "a.gif", "text/plain", b"GIF89a=1;alert(1)//", "image/gif"),
    Sample("gif and html", "a.html", "text/html", b"GIF89a" + HTML, "image/gif"),
    Sample("png with php", "a.php", "text/x-php", png(extra=png_chunk(b"tEXt", b"a\0<?php ?>")), "image/png"),
    Sample("png and zip", "a.zip", "application/zip", picture("PNG") + zipped("a"), "image/png"),
    Sample("jpeg with html", "a.html", "text/html", jpeg(extra=jpeg_segment(0xFE, HTML)), "image/jpeg"),
    Sample("webp as jpeg", "a.jpg", "image/jpeg", picture("WEBP"), "image/webp"),
    Sample("heic as jpeg", "a.jpg", "image/jpeg", isobmff(b"heic"), "image/heic"),
    Sample("avif as png", "a.png", "image/png", isobmff(b"mif1", b"avif"), "image/avif"),
    Sample("mp4 as png", "a.png", "image/png", isobmff(b"isom"), "video/mp4"),
    Sample("mp4 and svg", "a.mp4", "video/mp4", b"<svgftypisom" + SVG, BINARY),
    Sample("pdf with script", "a.pdf", "application/pdf", PDF, "application/pdf"),
    Sample("pdf as text", "a.txt", "text/plain", b"\xef\xbb\xbf" + PDF, "application/pdf"),
    Sample("html and pdf", "a.pdf", "application/pdf", HTML + PDF, BINARY),
    Sample("html and pdf as text", "a.pdf", "text/plain", HTML + PDF, BINARY),
    Sample("postscript as text", "a.txt", "text/plain", b"%!PS-Adobe-3.0\n(x) run", "application/postscript"),
    Sample("rtf as text", "a.txt", "text/plain", rb"{\rtf1\ansi x}", "application/rtf"),
    Sample("zip as png", "a.png", "image/png", zipped("../../etc/passwd"), "application/zip"),
    Sample("html and zip", "a.zip", "application/zip", HTML + zipped("a"), BINARY),
    Sample("zip as docx", "a.docx", OFFICE, zipped("a"), "application/zip"),
    Sample("docx as zip", "a.zip", "application/zip", zipped("[Content_Types].xml", "word/document.xml"), OFFICE),
    Sample("zip bomb", "a.zip", "application/zip", zip_bomb(), "application/zip"),
    Sample("program as png", "a.png", "image/png", b"MZ\x90\0\3\0\0\0", "application/x-msdownload"),
    Sample("flash as text", "a.txt", "text/plain", b"FWS\x09\0\0\0\0", "application/x-shockwave-flash"),
    Sample("text that is cut in a letter", "a.txt", "text/plain", b"x" * 4095 + "é".encode(), "text/plain"),
    Sample("text that ends in half a letter", "a.txt", "text/plain", b"x\xc3", BINARY),
    Sample("table that begins like a bitmap", "a.csv", "text/csv", b"BMI,age\n21,40\n", "text/csv"),
    Sample("wav with a bare name", "a.wav", "audio/x-wav", b"RIFF\4\0\0\0WAVE", "audio/wav"),
    Sample("nested frames", "a.zst", "application/zstd", struct.pack("<II", 0x184D2A50, 0) * 512, BINARY),
)

_MEGABYTE = zlib.compress(bytes(1 << 20), 9)
# Cost more than they look like: in pixels, in metadata, or in work.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 3.6 gigapixels": lambda: png((60_000, 60_000)),
    "png of one line": lambda: png((2**31 - 1, 1)),
    "png of texts that unpack": lambda: png(extra=png_chunk(b"iTXt", b"x\0\1\0\0\0" + _MEGABYTE) * 2000),
    "png of profiles that unpack": lambda: png(extra=png_chunk(b"iCCP", b"x\0\0" + _MEGABYTE) * 2000),
    "png of empty chunks": lambda: png(extra=png_chunk(b"IDAT", b"") * 500_000),
    "gif of 4.3 gigapixels": lambda: gif((65_535, 65_535)),
    "gif with a frame of 4.3 gigapixels": lambda: gif(frame=(65_535, 65_535)),
    "gif that is cleared first": lambda: gif(frame=(9000, 9000), extra=b"!\xf9\4" + bytes([9, 0, 0, 0, 0])),
    "gif of comments": lambda: gif(extra=b"!\xfe" + b"\2ab" * 2_000_000 + b"\0"),
    "webp of 268 megapixels": lambda: webp(webp_header(16_383, 16_383), picture("WEBP")[12:]),
    "webp of 281 terapixels": lambda: webp(webp_header(2**24, 2**24), picture("WEBP")[12:]),
    "webp of frames": lambda: webp_frames(150_000),
    "jpeg of 4.3 gigapixels": lambda: picture("JPEG", (64, 48)).replace(b"\x08\0\x30\0\x40", b"\x08" + b"\xff" * 4),
    "jpeg of scans": lambda: scans(2000),
    "jpeg of comments": lambda: jpeg(extra=jpeg_segment(0xFE, b"") * 500_000),
    "jpeg of fill bytes": lambda: jpeg(extra=b"\xff" * 10_000_000),
}
