"""The demo's images, made on the spot: rendered characters, and scikit-learn's scans of handwritten digits."""

from __future__ import annotations

import random
import string
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

PIXELS = 32
GREEK = "αβγδεζηθικλμνξπρστυφχψω"
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
FAMILIES = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "sans-oblique": "DejaVuSans-Oblique.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "serif-italic": "DejaVuSerif-Italic.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
    "times": "STIXGeneral.ttf",
    "times-bold": "STIXGeneralBol.ttf",
    "times-italic": "STIXGeneralItalic.ttf",
}


def characters(folder: Path, per_class: int = 70, seed: int = 0) -> None:
    """Latin letters in eleven typefaces: what the demo's base is trained on. Classes ``A-upper`` to ``z-lower``."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    for letter in string.ascii_letters:
        name = f"{letter}-{'upper' if letter.isupper() else 'lower'}"
        _write(folder / name, (glyph(letter, chance.choice(list(FAMILIES)), chance) for _ in range(per_class)))


def digits(folder: Path) -> None:
    """All 1,797 scans of scikit-learn's handwritten digits, 8x8 pixels and 17 grey levels as they were published."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits_ = load_digits()
    for digit in range(10):
        scans = digits_.images[digits_.target == digit]
        images = (Image.fromarray((scan * 255 / 16).round().astype("uint8"), mode="L") for scan in scans)
        _write(folder / str(digit), images)


def greek(folder: Path, per_class: int = 40, seed: int = 1) -> None:
    """Greek letters, which the base has never seen."""
    _alphabet(folder, GREEK, per_class, seed)


def cyrillic(folder: Path, per_class: int = 30, seed: int = 2) -> None:
    """Cyrillic letters, some of which look like Latin ones."""
    _alphabet(folder, CYRILLIC, per_class, seed)


def _alphabet(folder: Path, letters: str, per_class: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  (no secret)
    for letter in letters:
        name = unicodedata.name(letter).rpartition("SMALL LETTER ")[2].lower().replace(" ", "-")
        _write(folder / name, (glyph(letter, chance.choice(list(FAMILIES)), chance) for _ in range(per_class)))


TASKS: dict[str, Callable[[Path], None]] = {"digits": digits, "greek": greek, "cyrillic": cyrillic}


def glyph(letter: str, family: str, chance: random.Random) -> Any:
    """A letter somewhere near the middle, a little turned, of random size and contrast, on noise. A PIL image."""
    import numpy
    from PIL import Image, ImageDraw

    side = 2 * PIXELS  # drawn at twice the size, so that turning and shrinking blur the edges as a scan does
    sheet = Image.new("L", (side, side), 0)
    ImageDraw.Draw(sheet).text(
        (side / 2 + chance.uniform(-6, 6), side / 2 + chance.uniform(-6, 6)),
        letter,
        fill=255,
        font=font(family, chance.choice((36, 42, 48, 54))),
        anchor="mm",
    )
    turned = sheet.rotate(chance.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
    small = numpy.asarray(turned.resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype="float32") / 255
    ink, paper = sorted((chance.uniform(0, 0.35), chance.uniform(0.65, 1)), key=lambda shade: chance.random())
    noise = numpy.random.default_rng(chance.getrandbits(32)).normal(0, 0.04, small.shape)
    pixels = (paper + (ink - paper) * small + noise).clip(0, 1)
    return Image.fromarray((pixels * 255).astype("uint8"), mode="L")


@cache
def font(family: str, points: int) -> Any:
    """One of matplotlib's typefaces, by its name in ``FAMILIES``, for PIL."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", FAMILIES[family])), points)


def _write(folder: Path, images: Iterable[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(folder / f"{index:04d}.png")
