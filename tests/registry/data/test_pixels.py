"""The one function that decodes images: whatever a picture is stored in, a model sees what a viewer would show."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from taps_registry.registry.data.pixels import endings, formats, read_rgb
from taps_registry.registry.errors import DataError

GREYS = arrays("uint8", (7, 5))
COLOURS = arrays("uint8", (7, 5, 3))


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(source: bytes | Image.Image) -> numpy.ndarray:
    """``(H, W, 3)`` as signed integers, so that they can be subtracted."""
    image = read_rgb(source, "picture")
    assert image.mode == "RGB"
    return numpy.asarray(image).astype("int64")


def spread(grey: numpy.ndarray) -> numpy.ndarray:
    """A grey that uses the whole range, so that its scale is known."""
    grey = grey.copy()
    grey[0, 0], grey[0, 1] = 0, 255
    return grey


# Modes and formats


@given(COLOURS)
@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *((mode, form) for mode in ("RGB", "RGBA") for form in ("PNG", "TIFF", "BMP", "TGA", "SGI", "QOI", "ICO")),
        *(("RGB", form) for form in ("PPM", "PCX", "DDS", "DIB", "JPEG2000")),
        *((mode, "TIFF") for mode in ("RGBX", "CMYK")),
        ("RGBA", "JPEG2000"),
    ],
)
def test_a_picture_in_colours_is_the_same_in_every_form(mode: str, form: str, colours: numpy.ndarray) -> None:
    picture = Image.fromarray(colours)
    options = {"irreversible": False} if form == "JPEG2000" else {}
    assert (pixels(stored(picture.convert(mode), form, **options)) == colours).all()


@given(COLOURS)
@pytest.mark.parametrize(("form", "options"), [("WEBP", {"lossless": True}), ("PNG", {"compress_level": 0})])
def test_lossless_forms_lose_nothing(form: str, options: dict[str, object], colours: numpy.ndarray) -> None:
    assert (pixels(stored(Image.fromarray(colours), form, **options)) == colours).all()


@given(COLOURS)
@pytest.mark.parametrize(("mode", "most"), [("YCbCr", 3), ("HSV", 8)])
def test_other_colour_spaces_lose_no_more_than_their_rounding(mode: str, most: int, colours: numpy.ndarray) -> None:
    assert abs(pixels(Image.fromarray(colours).convert(mode)) - colours).max() <= most


def test_lab_is_converted() -> None:
    colours = numpy.array([[[220, 40, 40], [40, 220, 40], [40, 40, 220], [128, 128, 128], [255, 255, 255]]], "uint8")
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    picture = ImageCms.applyTransform(Image.fromarray(colours), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    assert abs(pixels(stored(picture, "TIFF")) - colours).max() <= 5  # of 8-bit L, a and b


@given(GREYS)
@pytest.mark.parametrize("mode", ["L", "LA", "P"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "GIF", "TGA"])
def test_a_grey_picture_is_the_same_in_every_form(mode: str, form: str, grey: numpy.ndarray) -> None:
    picture = Image.fromarray(grey).convert(mode)
    expected = numpy.repeat(grey[..., None], 3, axis=2)
    assert (pixels(stored(picture, form)) == expected).all()


@given(GREYS)
def test_greys_of_16_bits_are_scaled_from_their_full_range(grey: numpy.ndarray) -> None:
    wide = grey.astype("uint16") * 257
    expected = numpy.repeat(grey[..., None], 3, axis=2)
    assert (pixels(stored(Image.fromarray(wide), "PNG")) == expected).all()
    assert (pixels(stored(Image.fromarray(wide), "TIFF")) == expected).all()
    assert (pixels(stored(Image.fromarray(wide.astype(">u2").view(">u2")), "TIFF")) == expected).all()
    assert (pixels(b"P5 5 7 65535\n" + wide.astype(">u2").tobytes()) == expected).all()


@given(GREYS)
@pytest.mark.parametrize("greatest", [1, 255, 65535])
def test_floating_point_greys_are_scaled_from_the_range_they_are_in(greatest: int, grey: numpy.ndarray) -> None:
    grey = spread(grey)
    values = grey.astype("float32") / 255 * greatest
    expected = numpy.repeat(grey[..., None], 3, axis=2)
    assert (pixels(stored(Image.fromarray(values), "TIFF")) == expected).all()


@given(GREYS)
@pytest.mark.parametrize("factor", [1, 257, 16843009 // 2])
def test_integers_of_32_bits_are_scaled_from_the_range_they_are_in(factor: int, grey: numpy.ndarray) -> None:
    grey = spread(grey)
    values = grey.astype("int64") * factor
    found = pixels(stored(Image.fromarray(values.astype("int32")), "TIFF"))
    assert abs(found - numpy.repeat(grey[..., None], 3, axis=2)).max() <= 1


@given(GREYS)
def test_values_below_zero_are_stretched_from_the_least_to_the_greatest(grey: numpy.ndarray) -> None:
    grey = spread(grey)
    values = grey.astype("float32") - 100
    assert (pixels(stored(Image.fromarray(values), "TIFF")) == grey[..., None]).all()


def test_values_that_are_no_numbers_are_black() -> None:
    values = numpy.array([[numpy.nan, 0.0, 1.0, numpy.inf]], "float32")
    assert pixels(Image.fromarray(values))[0, :, 0].tolist() == [0, 0, 255, 0]


def test_a_grey_of_one_value_only_is_decoded() -> None:
    assert pixels(Image.new("F", (2, 2), -5.0)).max() == 0
    assert pixels(Image.new("I", (2, 2), 255)).min() == 255


@given(arrays("bool", (7, 5)))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "PCX", "MSP", "XBM"])
def test_one_bit_is_black_or_white(form: str, bits: numpy.ndarray) -> None:
    # Image.fromarray makes a picture of one bit of booleans, which XBM draws black where they are set.
    expected = numpy.where(bits, 255, 0)
    assert (pixels(stored(Image.fromarray(bits), form))[..., 0] == expected).all()


# Transparency


@pytest.mark.parametrize("form", ["PNG", "TIFF", "TGA", "WEBP", "ICO", "QOI"])
def test_what_is_transparent_is_white_whatever_colour_is_under_it(form: str) -> None:
    picture = numpy.zeros((4, 4, 4), "uint8")
    picture[:2] = (10, 200, 30, 255)
    picture[2:, :2, :3] = (255, 0, 255)
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = pixels(stored(Image.fromarray(picture), form, **options))
    assert (found[:2] == (10, 200, 30)).all()
    assert (found[2:] == 255).all()


def test_what_is_half_transparent_is_half_white() -> None:
    assert pixels(Image.new("RGBA", (1, 1), (0, 100, 200, 128))).tolist() == [[[127, 177, 227]]]
    assert pixels(Image.new("LA", (1, 1), (0, 128))).tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_a_colour_that_stands_for_transparency_is_white(mode: str) -> None:
    picture = Image.new("RGB", (2, 1), (255, 255, 255))
    picture.putpixel((0, 0), (0, 0, 0))
    picture = picture.convert(mode)
    clear = picture.getpixel((0, 0))
    assert (pixels(stored(picture, "PNG", transparency=clear)) == 255).all()
    assert pixels(stored(picture, "PNG"))[0, 0].tolist() == [0, 0, 0]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth: int, colour: int, rows: bytes, transparency: bytes, width: int = 2) -> bytes:
    """A PNG of one row, with a colour that stands for transparency."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", transparency), (b"IDAT", zlib.compress(b"\0" + rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_transparency_of_16_bits_is_white() -> None:
    grey = png(16, 0, struct.pack(">HH", 1000, 0), struct.pack(">H", 1000))
    assert pixels(grey)[0, :, 0].tolist() == [255, 0]
    colour = png(16, 2, struct.pack(">6H", 1000, 2000, 3000, 0, 0, 0), struct.pack(">3H", 1000, 2000, 3000))
    assert pixels(colour)[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_a_palette_with_transparent_colours_is_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert pixels(stored(picture, "PNG", transparency=b"\xff\x00"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


# EXIF, frames


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
def test_a_picture_stands_upright_however_the_camera_was_held(form: str, orientation: int) -> None:
    upright = numpy.zeros((16, 24, 3), "uint8")
    upright[:8, :8] = 255
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    picture = Image.fromarray(upright)
    if orientation > 1:
        picture = picture.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x112] = orientation
    found = pixels(stored(picture, form, exif=exif))
    assert found.shape == upright.shape
    assert abs(found - upright).mean() < 3


def test_a_picture_whose_exif_is_broken_is_shown_as_it_is_stored() -> None:
    whole = stored(Image.new("RGB", (8, 8), "red"), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert pixels(whole)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    file = io.BytesIO()
    frames[0].save(
        file, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    assert pixels(file.getvalue())[4, 4].tolist() == [255, 0, 0]


# What cannot be read


def reason(content: bytes | Path) -> str:
    """What is said of it: one line, which names it and no address in memory."""
    with pytest.raises(DataError) as caught:
        read_rgb(content, "cats/1.png")
    text = str(caught.value)
    assert text.startswith("cats/1.png: ")
    assert "\n" not in text
    assert "0x" not in text
    return text


def test_text_is_not_an_image() -> None:
    assert reason(b"hello") == "cats/1.png: not an image of a format that can be read."
    assert reason(b"") == "cats/1.png: not an image of a format that can be read."


def test_a_truncated_file_is_an_error() -> None:
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8"))
    for form in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"):
        whole = stored(noise, form)
        reason(whole[: len(whole) // 2])


def test_a_decompression_bomb_is_an_error() -> None:
    assert "decompression bomb" in reason(stored(Image.new("1", (14000, 14000)), "PNG"))


def test_a_folder_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    assert reason(tmp_path) == "cats/1.png: Is a directory."
    assert reason(tmp_path / "none") == "cats/1.png: No such file or directory."


def test_a_program_is_never_run_as_a_picture() -> None:
    """Pillow would hand a file in PostScript to Ghostscript."""
    assert "format that can be read" in reason(stored(Image.new("RGB", (4, 4)), "EPS"))
    assert not {"EPS", "MPEG", "HDF5", "WMF"} & formats()


@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO"]))
def test_a_spoilt_file_is_a_picture_or_an_error_in_one_line(noise: bytes, form: str) -> None:
    whole = stored(Image.new("RGB", (9, 9), "red"), form)
    spoilt = whole[:20] + noise + whole[20 + len(noise) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is odd in the file
        try:
            said = read_rgb(spoilt, "x").mode
        except DataError as error:
            said = str(error)
    assert said == "RGB" or (said.startswith("x: ") and "\n" not in said)


def test_endings_are_those_of_pictures() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"} < endings()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".hdf", ".txt", ""} & endings()
