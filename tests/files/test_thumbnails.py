import json
import os
import subprocess
import sys
import textwrap
import threading
from io import BytesIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from project.errors import REGISTRY
from project.files.thumbnails import FORMATS, PICTURES, SIZES, ImageTooLarge, NotAnImage, dimensions, render
from tests.files.samples import (
    BOMBS,
    exif,
    gif,
    jpeg,
    jpeg_segment,
    picture,
    png,
    png_chunk,
    riff_chunk,
    scans,
    webp,
    webp_header,
)

KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
BLUE, RED = (0, 0, 255), (255, 0, 0)
SECRET = b"GPS 52.5200 N 13.4050 E"


def thumbnail(content: bytes, *, size: int = 64, to: str = "webp") -> Image.Image:
    image = Image.open(BytesIO(render(BytesIO(content), size=size, format=to)))
    assert image.format == to.upper()
    image.load()
    return image


def near(pixel, colour) -> bool:
    return all(abs(one - other) < 40 for one, other in zip(pixel, colour, strict=True))


def corners(image: Image.Image) -> list[str]:
    """Name the colours of the corners: top left, top right, bottom left, bottom right."""
    right, bottom = image.width - 2, image.height - 2
    pixels = [image.getpixel(place) for place in ((1, 1), (right, 1), (1, bottom), (right, bottom))]
    return ["blue" if near(pixel, BLUE) else "red" if near(pixel, RED) else str(pixel) for pixel in pixels]


def with_exif(kind: str, data: bytes, *, size: tuple[int, int] = (200, 100)) -> bytes:
    if kind == "JPEG":
        xmp = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
        return jpeg(extra=jpeg_segment(0xE1, b"Exif\0\0" + data) + xmp, size=size)
    plain = picture(kind, size)
    if kind == "PNG":
        return plain[:33] + png_chunk(b"eXIf", data) + plain[33:]
    xmp = riff_chunk(b"XMP ", b"odd")
    return webp(webp_header(*size, flags=12), plain[12:], xmp, riff_chunk(b"EXIF", data))


def animation(kind: str) -> bytes:
    encoded = BytesIO()
    first, second = (Image.new("RGB", (40, 20), colour) for colour in ("red", "blue"))
    first.save(encoded, kind, save_all=True, append_images=[second], lossless=True)
    return encoded.getvalue()


def transparent(kind: str, mode: str) -> bytes:
    encoded = BytesIO()
    Image.new("RGBA", (40, 20), (0, 0, 0, 0)).convert(mode).save(encoded, kind)
    return encoded.getvalue()


def rgb_jpeg() -> bytes:
    """Only Adobe's segment says that the colours are no YCbCr."""
    named = picture("JPEG", (200, 100), keep_rgb=True)
    assert b"Adobe" in named
    return named.replace(b"R\x11\0G\x11\0B\x11\0", b"\1\x11\0\2\x11\0\3\x11\0").replace(b"R\0G\0B\0", b"\1\0\2\0\3\0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_thumbnail_fits_a_square_and_looks_like_the_picture(kind, to, size):
    image = thumbnail(picture(kind, (2000, 1000)), size=size, to=to)

    assert image.size == (size, size // 2)
    assert image.mode == "RGB"
    assert corners(image) == ["blue", "red", "red", "red"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_picture_is_not_enlarged(kind):
    assert thumbnail(picture(kind, (40, 20)), size=256).size == (40, 20)


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_line_stays_a_line(kind, size):
    assert thumbnail(picture(kind, size)).size == tuple(min(side, 64) for side in size)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    assert corners(thumbnail(animation(kind))) == ["red"] * 4


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (picture("JPEG", mode="L"), (76, 76, 76)),
        (picture("JPEG", mode="CMYK"), RED),
        (picture("JPEG", progressive=True), RED),
        (picture("JPEG", dpi=(300, 300), comment="x"), RED),
        (rgb_jpeg(), RED),
        (picture("GIF", mode="L"), (76, 76, 76)),
        (picture("WEBP", lossless=True), RED),
        (png(depth=1, colour=0, row=b"\xff"), (255, 255, 255)),
        (png(depth=2, colour=0, row=b"\x55" * 2), (85, 85, 85)),
        (png(depth=16, colour=0, row=b"\x80\0" * 8), (128, 128, 128)),
        (png(depth=16, colour=0, row=b"\x80\0" * 8, extra=png_chunk(b"tRNS", b"\0\x80")), (128, 128, 128)),
        (png(depth=16, colour=2, row=b"\xff\xff\0\0\0\0" * 8), RED),
        (png(depth=2, colour=3, row=b"\x55" * 2, extra=png_chunk(b"PLTE", b"\0\0\0\xff\0\0")), RED),
    ],
    ids=["grey", "cmyk", "progressive", "comment", "rgb", "gif", "lossless", "1", "2", "16", "16t", "48", "palette"],
)
def test_every_kind_of_colours_is_understood(content, colour):
    for to in FORMATS:
        image = thumbnail(content, to=to)
        assert near(image.getpixel((image.width - 1, image.height - 1)), colour)


@pytest.mark.parametrize(
    "content",
    [
        transparent("PNG", "RGBA"),
        transparent("PNG", "LA"),
        transparent("WEBP", "RGBA"),
        transparent("GIF", "RGBA"),
        png(depth=16, colour=6, row=bytes(64)),
        png(extra=png_chunk(b"tRNS", bytes(6))),
        png(colour=3, row=bytes(8), extra=png_chunk(b"PLTE", bytes(6)) + png_chunk(b"tRNS", b"\0\x80")),
        png(colour=0, row=bytes(8), extra=png_chunk(b"tRNS", bytes(2))),
    ],
    ids=["rgba", "grey", "webp", "gif", "64", "colour", "palette", "shade"],
)
def test_what_is_transparent_stays_so_in_webp_and_is_white_in_jpeg(content):
    assert thumbnail(content, to="webp").getchannel("A").getextrema() == (0, 0)
    assert near(thumbnail(content, to="jpeg").getpixel((1, 1)), (255, 255, 255))


@pytest.mark.parametrize(
    "content",
    [
        png((512, 8), depth=1, colour=0, row=b"\x55" * 64),
        png((512, 8), colour=3, row=b"\0\1" * 256, extra=png_chunk(b"PLTE", b"\0\0\0\xff\xff\xff")),
        png((512, 8), colour=0, row=b"\0\xff" * 256),
    ],
    ids=["1", "palette", "grey"],
)
def test_neighbours_are_mixed(content):
    assert near(thumbnail(content, to="jpeg").getpixel((30, 0)), (128, 128, 128))


@pytest.mark.parametrize(
    "content",
    [
        png((512, 8), colour=0, row=b"\0\xff" * 256, extra=png_chunk(b"tRNS", b"\0\0")),
        png((512, 8), colour=3, row=b"\0\1" * 256, extra=png_chunk(b"PLTE", bytes(6)) + png_chunk(b"tRNS", b"\0")),
    ],
    ids=["shade", "palette"],
)
def test_the_transparent_is_mixed_with_its_neighbours(content):
    assert near(thumbnail(content, to="webp").getchannel("A").getextrema(), (128, 128))


@pytest.mark.parametrize(
    ("orientation", "blue"), [(0, 0), (1, 0), (2, 1), (3, 3), (4, 2), (5, 0), (6, 1), (7, 3), (8, 2), (9, 0)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_picture_is_turned_upright(orientation, blue, kind, order):
    image = thumbnail(with_exif(kind, exif(orientation, order=order)))

    assert image.size == ((32, 64) if orientation in {5, 6, 7, 8} else (64, 32))
    assert corners(image).index("blue") == blue


def test_the_exif_of_a_webp_may_begin_like_that_of_a_jpeg():
    assert thumbnail(with_exif("WEBP", b"Exif\0\0" + exif(6))).size == (32, 64)


@pytest.mark.parametrize("junk", [1, 8190, 8191, 8192])
def test_bytes_between_the_segments_of_a_jpeg_are_skipped(junk):
    segments = jpeg_segment(0xFE, b"") + bytes(junk) + jpeg_segment(0xE1, b"Exif\0\0" + exif(6))
    assert thumbnail(jpeg(extra=segments, size=(200, 100))).size == (32, 64)


def test_a_broken_list_of_more_pictures_does_not_spoil_a_photo():
    assert thumbnail(jpeg(extra=jpeg_segment(0xE2, b"MPF\0MM\0*"))).size == (40, 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "data",
    [b"", b"MM", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", exif(6)[:-10], bytes(60_000)],
    ids=["empty", "order", "head", "place", "count", "cut", "nonsense"],
)
def test_broken_exif_does_not_spoil_a_picture(kind, data):
    assert thumbnail(with_exif(kind, data)).size == (64, 32)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "content",
    [
        jpeg(
            extra=jpeg_segment(0xE1, b"Exif\0\0" + exif(1, text=SECRET))
            + jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)
            + jpeg_segment(0xED, b"Photoshop 3.0\0" + SECRET)
            + jpeg_segment(0xFE, SECRET),
            icc_profile=SECRET,
        ),
        png(extra=png_chunk(b"tEXt", b"comment\0" + SECRET) + png_chunk(b"eXIf", exif(1, text=SECRET))),
        picture("WEBP", exif=exif(1, text=SECRET), xmp=SECRET, icc_profile=SECRET),
        picture("GIF", comment=SECRET),
    ],
    ids=KINDS,
)
def test_a_thumbnail_holds_nothing_but_pixels(content, to):
    assert SECRET in content

    rendered = render(BytesIO(content), size=64, format=to)

    assert SECRET not in rendered
    assert not {"exif", "icc_profile", "xmp", "comment"} & set(Image.open(BytesIO(rendered)).info)


def test_what_a_phone_appends_to_a_photo_does_no_harm():
    film = b"\xff\xda\0\2" * 1000
    assert corners(thumbnail(picture("JPEG", (200, 100)) + film)) == ["blue", "red", "red", "red"]


BROKEN = {
    "nothing": b"",
    "text": b"text",
    "a sound": b"RIFF\4\0\0\0WAVEfmt " + bytes(100),
    "a bitmap": picture("BMP"),
    "a png without chunks": b"\x89PNG\r\n\x1a\n",
    "a png without a width": png((0, 8)),
    "a png of a negative width": png((2**32 - 1, 1)),
    "a png with two sizes": png((4, 4), extra=png()[8:33]),
    "a png without pixels": png().replace(b"IDAT", b"iDAT"),
    "a png without its palette": png(colour=3),
    "a jpeg without segments": b"\xff\xd8\xff\xd9",
    "a jpeg without tables": picture("JPEG").replace(b"\xff\xdb", b"\xff\xfe"),
    "a jpeg of too many scans": scans(101, (64, 64)),
    "a gif without pixels": gif(),
    "a gif without a frame": gif()[:13] + b";",
    "a webp without pixels": webp(webp_header(8, 8)),
    **{f"half a {kind}": picture(kind, (200, 100), mode="L")[:-200] for kind in KINDS},
    **{f"the start of a {kind}": picture(kind)[:20] for kind in KINDS},
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_or_a_broken_one_is_refused(name):
    with pytest.raises(NotAnImage):
        render(BytesIO(BROKEN[name]), size=64, format="webp")


def test_a_hundred_scans_are_enough():
    assert thumbnail(scans(100, (64, 64))).size == (64, 64)


def test_what_follows_a_picture_does_no_harm():
    film = b"\xff\xda\0\2" * 1000
    for kind in KINDS:
        assert corners(thumbnail(picture(kind, (200, 100)) + film)) == ["blue", "red", "red", "red"]


def test_a_file_of_more_than_50_mebibytes_is_refused(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(picture("PNG"))
    os.truncate(path, 50 * 1024 * 1024)
    with path.open("rb") as file:
        assert render(file, size=64, format="webp")

    os.truncate(path, 50 * 1024 * 1024 + 1)
    with path.open("rb") as file, pytest.raises(ImageTooLarge):
        render(file, size=64, format="webp")


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (png((8000, 5000)), NotAnImage),  # it has fewer pixels than it says
        (png((8000, 5001)), ImageTooLarge),
        (gif((8000, 5001)), ImageTooLarge),
        (webp(webp_header(5000, 4000)), NotAnImage),
        (webp(webp_header(5000, 4001)), ImageTooLarge),
    ],
    ids=["png", "large png", "large gif", "webp", "large webp"],
)
def test_a_picture_may_have_40_megapixels_and_a_webp_20(content, refused):
    with pytest.raises(refused):
        render(BytesIO(content), size=64, format="webp")


@pytest.mark.parametrize(("error", "code"), [(NotAnImage, "not_an_image"), (ImageTooLarge, "image_too_large")])
def test_the_refusals_are_published_with_a_code_and_a_pointer(error, code):
    assert REGISTRY[code].status == 422
    assert [(field.pointer, field.code) for field in error().errors] == [("", code)]


MEASURE = """
    import json, time
    from io import BytesIO
    from pathlib import Path
    from project.errors import AppError
    from project.files.thumbnails import dimensions, render
    from tests.files.samples import BOMBS, picture

    def megabytes(of):
        status = Path("/proc/self/status").read_text()
        return int(status.split(of + ":")[1].split()[0]) // 1024

    def measure(content):
        file = BytesIO(content)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, started = megabytes("VmRSS"), time.process_time()
        try:
            dimensions(file, "image/png")
            render(file, size=64, format="webp")
            answer = "rendered"
        except AppError as error:
            answer = error.code
        return answer, megabytes("VmHWM") - before, time.process_time() - started

    # What is loaded and kept with the first pictures is no cost of the bombs.
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        measure(picture(kind))
    answers = {name: measure(build()) for name, build in BOMBS.items()}
    # The proof that it is measured: 9 bytes for a pixel.
    answers["rgba"] = measure(picture("PNG", (3000, 2000), mode="RGBA"))
    print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, int, float]]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(MEASURE)]
    # Memory that is freed has to go back at once, or the next one would seem to need none.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=100, env=env).stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_neither_memory_nor_time(measured, name):
    answer, megabytes, seconds = measured[name]

    assert answer == ("image_too_large" if "pixels" in name or "line" in name else answer)
    assert megabytes < 30 < measured["rgba"][1]
    assert seconds < 1


def test_one_picture_is_decoded_at_a_time():
    class Slow(BytesIO):
        """Says when it is read, and waits until it may be."""

        def __init__(self, content: bytes) -> None:
            super().__init__(content)
            self.reached, self.allowed = threading.Event(), threading.Event()

        def read(self, size: int | None = -1, /) -> bytes:
            self.reached.set()
            assert self.allowed.wait(10)
            return super().read(size)

    first, second = Slow(picture("PNG")), Slow(picture("PNG"))
    second.allowed.set()
    threads = [
        threading.Thread(target=render, args=[file], kwargs={"size": 64, "format": "webp"}) for file in (first, second)
    ]
    threads[0].start()
    assert first.reached.wait(10)
    threads[1].start()

    assert not second.reached.wait(0.2)
    first.allowed.set()
    assert second.reached.wait(10)
    for thread in threads:
        thread.join()


class Counting(BytesIO):
    """Counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_read_from_the_header(kind):
    encoded = BytesIO()
    Image.effect_noise((1000, 500), 100).save(encoded, kind)
    file = Counting(encoded.getvalue())

    assert dimensions(file, KINDS[kind]) == (1000, 500)
    assert file.count < 30_000 < len(encoded.getvalue())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"progressive": True, "dpi": (72, 72), "comment": "x"}])
def test_the_size_is_told_of_every_variant(kind, options):
    assert dimensions(BytesIO(picture(kind, (33, 21), **options)), KINDS[kind]) == (33, 21)


def test_the_size_is_found_behind_megabytes_of_metadata():
    file = Counting(jpeg(extra=jpeg_segment(0xE1, bytes(65_000)) * 100, size=(200, 100)))

    assert dimensions(file, "image/jpeg") == (200, 100)
    assert file.count < 1_000_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_the_stored_one_and_not_turned(kind):
    assert dimensions(BytesIO(with_exif(kind, exif(6))), KINDS[kind]) == (200, 100)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("png of 3.6 gigapixels", (60_000, 60_000)),
        ("gif of 4.3 gigapixels", (65_535, 65_535)),
        ("gif with a frame of 4.3 gigapixels", (65_535, 65_535)),
        ("webp of 268 megapixels", (16_383, 16_383)),
        ("jpeg of 4.3 gigapixels", (65_535, 65_535)),
        ("gif of comments", None),
    ],
)
def test_the_size_of_a_bomb_is_told_if_its_header_does(name, size):
    assert dimensions(BytesIO(BOMBS[name]()), "image/png") == size


@pytest.mark.parametrize("content_type", ["image/avif", "image/svg+xml", "text/plain", "application/octet-stream"])
def test_other_types_have_no_size(content_type):
    assert dimensions(BytesIO(picture("PNG")), content_type) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"RIFF",
        png()[:20],
        png().replace(b"IHDR", b"CgBI"),
        gif()[:10],
        picture("JPEG")[:100],
        png((0, 8)),
    ],
    ids=["nothing", "text", "riff", "png", "other png", "gif", "jpeg", "flat png"],
)
def test_without_a_header_there_is_no_size(content):
    assert dimensions(BytesIO(content), "image/png") is None


def test_the_types_with_thumbnails_are_those_of_the_four_formats():
    assert set(KINDS.values()) == PICTURES


ORIGINALS = [
    picture(kind, (24, 16), **options) for kind in KINDS for options in ({}, {"mode": "L"}, {"lossless": True})
]
ORIGINALS += [with_exif(kind, exif(6), size=(24, 16)) for kind in ("JPEG", "PNG", "WEBP")]
ORIGINALS += [animation(kind) for kind in ("PNG", "GIF", "WEBP")]


@settings(deadline=None)
@given(
    st.sampled_from(ORIGINALS),
    st.lists(st.tuples(st.integers(0, 700), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=4),
)
@example(ORIGINALS[0], [(0, b"", 0)])
def test_a_changed_picture_is_rendered_or_refused(content, changes):
    for place, data, removed in changes:
        content = content[:place] + data + content[place + removed :]
    size = dimensions(BytesIO(content), "image/png")

    try:
        rendered = render(BytesIO(content), size=64, format="jpeg")
    except (NotAnImage, ImageTooLarge):
        return
    assert size is not None
    assert max(Image.open(BytesIO(rendered)).size) == min(64, max(size))
