"""Image files to pixels: the one function that every image passes, in training and in every use of a task.

What a viewer would show is what a model sees: upright, on white, in 8-bit RGB.
"""

from __future__ import annotations

import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from ..errors import DataError, first_line

Source = bytes | Path | Image.Image
# EPS is a program, which Ghostscript would have to run; of films Pillow reads the size.
WITHOUT_PIXELS = {"EPS", "MPEG"}
SIXTEEN_BITS = {"PNG", "PPM"}  # formats whose greys Pillow may put into integers of 32 bits, but which have 16
ADDRESS = re.compile(r"<([\w.]+)[^<>]* at 0x[0-9a-fA-F]+>")


@cache
def formats() -> frozenset[str]:
    """Pillow's formats that hold pixels, such as ``JPEG``."""
    Image.init()
    stubs = {
        name
        for name, (factory, _) in Image.OPEN.items()
        if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    }
    return frozenset(Image.OPEN) - stubs - WITHOUT_PIXELS


@cache
def endings() -> frozenset[str]:
    """How the names of their files end, in small letters, such as ``.jpg``."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats())


def read_rgb(source: Source, name: str) -> Image.Image:
    """Decode an image: its first frame, turned as EXIF says, on white, in mode ``RGB``.

    16-bit and floating-point greys are scaled to 8 bits, see ``_grey``. A truncated file is an error.

    Raises:
        DataError: in one line, with the name and the reason.
    """
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        with (
            Image.open(BytesIO(content), formats=sorted(formats())) if isinstance(content, bytes) else content as image
        ):
            image.load()
            return _flat(_upright(image))
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image of a format that can be read.") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them to
        raise DataError(f"{name}: {reason(error)}.") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. An image whose EXIF is broken is shown as it is stored."""
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # noqa: BLE001  (the pixels have been decoded: nothing that EXIF holds is needed for them)
        return image


def _flat(image: Image.Image) -> Image.Image:
    """Mode ``RGB``, with white behind what is transparent."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey(image)
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode == "RGB" and isinstance(clear := image.info.get("transparency"), tuple) and max(clear) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # of 16 bits, as the pixels were
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits.

    The range is that of the format where it says so: 16 bits, or the bits that a TIFF declares. Integers of 32 bits
    and floating-point values are taken to be in the smallest of the usual ranges that holds them, 0 to 1 (floats only),
    to 255 or to 65535; values outside of all these are stretched from the image's least to its greatest.
    """
    values = numpy.asarray(image).astype("float64")
    finite = numpy.isfinite(values)
    low, high = _range(image, values[finite])
    scaled = numpy.where(finite, values - low, 0) / (high - low) * 255
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        scaled[values == clear] = 255
    return Image.fromarray(numpy.rint(scaled.clip(0, 255)).astype("uint8")).convert("RGB")


def _range(image: Image.Image, values: Any) -> tuple[float, float]:
    """The values that are black and white."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258, 16)
        return 0, 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    if not values.size:
        return 0, 1
    least, greatest = float(values.min()), float(values.max())
    usual = (1, 255, 65535) if image.mode == "F" else (65535,) if image.format in SIXTEEN_BITS else (255, 65535)
    for limit in usual:
        if least >= 0 and greatest <= limit:
            return 0, limit
    return least, greatest if greatest > least else least + 1


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)


def reason(error: Exception) -> str:
    """What another library's error says of a file, in one line that is the same for the same fault."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return ADDRESS.sub(r"\1", said).rstrip(".")
