"""Thumbnails, made from pictures that anybody may have put together to do harm."""

import logging
import os
from io import BytesIO
from threading import Lock
from typing import BinaryIO

# By itself Pillow loads what reads WebP only together with its sixty other plugins.
from PIL import Image, WebPImagePlugin  # noqa: F401

from project.errors import AppError, FieldError, Invalid
from project.files import pictures

logger = logging.getLogger(__name__)

SIZES = (64, 128, 256, 512, 1024)  # the longest side, in pixels
FORMATS = ("webp", "jpeg")
PICTURES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif"})

MAX_BYTES = 50 * 1024 * 1024
# Making a thumbnail takes up to 400 MB of memory: 9 bytes for a pixel, and the file.
MAX_PIXELS = 40_000_000
# 16 bytes for a pixel of a WebP: all are decoded like animations, with two canvases.
MAX_WEBP_PIXELS = 20_000_000

# How to turn each orientation of Exif upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# One picture at a time in a process, whatever its number of threads: each may need the memory named above.
_one_at_a_time = Lock()


class NotAnImage(Invalid):
    """422: the file is no picture that thumbnails are made of, or a broken one."""

    code = "not_an_image"
    message = "This file is not a picture that can be read."
    cure = "Ask for thumbnails of JPEG, PNG, WebP and GIF files only; if it is one, it is damaged."

    def __init__(self) -> None:
        super().__init__(errors=[FieldError("", self.code, self.message)])


class ImageTooLarge(Invalid):
    """422: the picture would take too much memory."""

    code = "image_too_large"
    message = "This picture is too large for a thumbnail."
    cure = "Thumbnails are made of pictures of up to 40 megapixels (WebP: 20) and 50 MiB."

    def __init__(self) -> None:
        super().__init__(errors=[FieldError("", self.code, self.message)])


def dimensions(file: BinaryIO, content_type: str) -> tuple[int, int] | None:
    """Return width and height in pixels, or None when the type has no thumbnails or the header does not tell.

    They are those of the stored picture, however large; a viewer that heeds Exif may turn it by 90°. Only the header
    is read, wherever in the file it is, and nothing is decoded. `file` must be seekable.
    """
    if content_type not in PICTURES:
        return None
    try:
        return pictures.read_size(file)
    except pictures.Malformed:
        return None


def render(file: BinaryIO, *, size: int, format: str) -> bytes:  # noqa: A002
    """Return the thumbnail of a picture: its first frame, upright, at most `size` pixels long, never enlarged.

    It holds pixels only: no Exif, no comment and no colour profile (which is not applied either). Where the picture
    is transparent, WebP is too, and JPEG is white. `file` must be seekable; another thread's picture is waited for.

    Raises:
        NotAnImage: it is none of the four formats, or damaged.
        ImageTooLarge: it has too many pixels or bytes; found out before it is decoded.
    """
    if file.seek(0, os.SEEK_END) > MAX_BYTES:
        raise ImageTooLarge()
    with _one_at_a_time:
        try:
            thumbnail = _shrink(file, size)
        except (AppError, MemoryError):
            raise
        except Exception as error:
            # Malformed, or Pillow's: made to fail, its decoders raise whatever comes.
            logger.info("picture_not_decoded", extra={"error": type(error).__name__})
            raise NotAnImage() from error
    return _encode(thumbnail, format)


def _shrink(file: BinaryIO, size: int) -> Image.Image:
    width, height = pictures.read_size(file)
    kind = pictures.find_format(file)
    # Before Pillow sees it: that only warns up to 179 megapixels, and allocates some when it opens a file.
    if width * height > (MAX_WEBP_PIXELS if kind == "WEBP" else MAX_PIXELS):
        raise ImageTooLarge()
    stripped, orientation = pictures.strip(file)
    with Image.open(stripped, formats=(kind,)) as opened:
        if opened.size != (width, height):
            raise pictures.Malformed()
        image = _resizable(opened)
        # A JPEG is decoded at a fraction of its size; therefore it must not have been loaded before.
        image.thumbnail((size, size))
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    turn = _TURNS.get(orientation)
    return image.transpose(turn) if turn is not None else image


def _resizable(image: Image.Image) -> Image.Image:
    """Return the picture in a mode that is resized smoothly: no palette, no 16 bits, no colour that is transparent."""
    if image.mode == "I;16":
        # Converting alone would make white of all that is not nearly black.
        image = image.point(lambda value: value / 256).convert("L")
        image.info.pop("transparency", None)
    if image.mode in {"1", "P"} or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image


def _encode(image: Image.Image, format: str) -> bytes:  # noqa: A002
    if format == "jpeg" and image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    # What is left of the original's comments would be written.
    image.info.clear()
    encoded = BytesIO()
    image.save(encoded, format, quality=80)
    return encoded.getvalue()
