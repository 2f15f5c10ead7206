"""What the suite's images are composed of: masks and fields of numbers, and scenes that put one over another.

A mask is ``(side, side)`` float32 in 0..1: where the object is. A field is the same for a pattern that fills an image.
A scene is ``(side, side, 3)`` uint8. Whatever is random comes from the ``Generator`` that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from taps_registry.cli.demo.pictures import font

Array = NDArray[Any]
FINER = 2  # masks are drawn at so many times their size, so that edges come out smooth


def glyph(
    letter: str,
    family: str,
    side: int,
    rng: Generator,
    *,
    turn: float = 0.0,
    wobble: float = 15.0,
    sizes: tuple[float, float] = (0.5, 0.9),
) -> Array:
    """The mask of a character.

    Args:
        letter: to draw.
        family: typeface, a key of ``pictures.FAMILIES``.
        side: of the mask, in pixels.
        rng: decides on size, place and turn.
        turn: degrees, anticlockwise.
        wobble: further degrees, at most, either way.
        sizes: smallest and largest font size, as shares of the side.
    """
    full = FINER * side
    sheet = Image.new("L", (full, full), 0)
    points = round(full * rng.uniform(*sizes) / 2) * 2  # in steps, since each size is loaded once
    ImageDraw.Draw(sheet).text((full / 2, full / 2), letter, fill=255, font=font(family, points), anchor="mm")
    return _placed(sheet, turn + rng.uniform(-wobble, wobble), side, rng)


def scan(pixels: Array, side: int, rng: Generator, *, wobble: float = 15.0) -> Array:
    """The mask of a small grey image of 0..1, drawn a little larger or smaller, turned and moved."""
    full = FINER * side
    size = round(full * rng.uniform(0.55, 0.9))
    small = Image.fromarray((pixels * 255).round().astype("uint8")).resize((size, size), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (full, full), 0)
    sheet.paste(small, ((full - size) // 2, (full - size) // 2))
    return _placed(sheet, rng.uniform(-wobble, wobble), side, rng)


def polygon(corners: Array, side: int, rng: Generator, *, wobble: float = 180.0) -> Array:
    """The mask of a filled polygon.

    Args:
        corners: ``(n, 2)``, around the origin, at most 1 away from it.
        side: of the mask, in pixels.
        rng: decides on size, stretch, place and turn.
        wobble: degrees of turn, at most, either way.
    """
    full = FINER * side
    radius = full * rng.uniform(0.22, 0.42)
    stretch = numpy.array([1.0, rng.uniform(0.8, 1.0)])
    sheet = Image.new("L", (full, full), 0)
    points = [(float(x), float(y)) for x, y in full / 2 + radius * corners * stretch]
    ImageDraw.Draw(sheet).polygon(points, fill=255)
    return _placed(sheet, rng.uniform(-wobble, wobble), side, rng)


def _placed(sheet: Image.Image, degrees: float, side: int, rng: Generator) -> Array:
    """Turned, moved by up to a tenth, and brought to its size."""
    move = tuple(float(step) for step in rng.uniform(-0.1, 0.1, 2) * sheet.width)
    turned = sheet.rotate(float(degrees), resample=Image.Resampling.BILINEAR, translate=move)
    small: Array = numpy.asarray(turned.resize((side, side), Image.Resampling.BOX), dtype="float32") / 255
    return small


@cache
def _grid(side: int) -> tuple[Array, Array]:
    """Coordinates -1..1 of the pixels, along x and y."""
    line = numpy.linspace(-1, 1, side, dtype="float32")
    x, y = numpy.meshgrid(line, line)
    return x, y


def turned_grid(side: int, rng: Generator) -> tuple[Array, Array]:
    """Coordinates -1..1 of the pixels in a frame turned and moved at random."""
    x, y = _grid(side)
    angle = rng.uniform(0, 2 * numpy.pi)
    along = x * numpy.cos(angle) + y * numpy.sin(angle) + rng.uniform(-1, 1)
    across = y * numpy.cos(angle) - x * numpy.sin(angle) + rng.uniform(-1, 1)
    return along, across


def clouds(side: int, cells: int, rng: Generator) -> Array:
    """A field of smooth noise with about ``cells`` bumps along each side."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype="float32"), mode="F")
    field: Array = numpy.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype="float32")
    return field.clip(0, 1)


def colour(rng: Generator) -> Array:
    """A random colour, three values of 0..1."""
    return rng.uniform(0, 1, 3).astype("float32")


def apart(other: Array, rng: Generator, least: float) -> Array:
    """A random colour whose brightness is at least so far from another's."""
    while True:
        found = colour(rng)
        if abs(float(found.mean() - other.mean())) >= least:
            return found


def blend(field: Array, low: Array, high: Array) -> Array:
    """Two colours, mixed as a field says: ``(side, side, 3)`` float32."""
    mixed: Array = low + (high - low) * field[..., None]
    return mixed


def scene(mask: Array, rng: Generator, *, clutter: int, contrast: float, noise: float) -> Array:
    """An object in one colour on clouded paper, among strokes that mean nothing.

    Args:
        mask: of the object.
        rng: decides on everything else.
        clutter: how many strokes, at most.
        contrast: least difference in brightness between object and paper.
        noise: standard deviation of each pixel's noise.
    """
    side = len(mask)
    paper = colour(rng)
    shade = (paper + rng.normal(0, 0.12, 3)).clip(0, 1).astype("float32")
    ink = apart((paper + shade) / 2, rng, contrast)
    pixels = blend(clouds(side, 3, rng), paper, shade)
    for _ in range(int(rng.integers(0, clutter + 1))):
        pixels = over(pixels, stroke(side, rng), apart(paper, rng, contrast / 2))
    return finished(over(pixels, mask, ink), rng, noise)


def finished(pixels: Array, rng: Generator, noise: float) -> Array:
    """Pixels of 0..1 with noise on them, as bytes."""
    grain = rng.normal(0, noise, pixels.shape).astype("float32")
    made: Array = ((pixels + grain).clip(0, 1) * 255).round().astype("uint8")
    return made


def stroke(side: int, rng: Generator) -> Array:
    """The mask of a thin line from anywhere to anywhere."""
    full = FINER * side
    sheet = Image.new("L", (full, full), 0)
    ends = [float(end) for end in rng.uniform(0, full, 4)]
    ImageDraw.Draw(sheet).line(ends, fill=255, width=int(rng.integers(2, 6)))
    return numpy.asarray(sheet.resize((side, side), Image.Resampling.BOX), dtype="float32") / 255


def over(pixels: Array, mask: Array, tint: Array) -> Array:
    """Pixels of 0..1 with a colour where the mask is."""
    covered: Array = pixels + (tint - pixels) * mask[..., None]
    return covered


def spots(count: int, side: int, rng: Generator) -> list[Array]:
    """Masks of round spots that do not touch."""
    x, y = _grid(side)
    found: list[tuple[float, float, float]] = []
    while len(found) < count:
        radius = rng.uniform(0.08, 0.18)
        across, down = rng.uniform(-0.95 + radius, 0.95 - radius, 2)
        if all(numpy.hypot(across - a, down - d) > radius + r + 0.1 for a, d, r in found):
            found.append((across, down, radius))
    return [((r - numpy.hypot(x - a, y - d)) * side / 2 + 0.5).clip(0, 1) for a, d, r in found]


def regular(corners: int, inner: float = 1.0) -> Array:
    """Corners of a regular polygon; with ``inner`` below 1 those of a star of so many points."""
    count = corners if inner == 1.0 else 2 * corners
    angles = numpy.arange(count) * 2 * numpy.pi / count
    radius = numpy.where(numpy.arange(count) % 2, inner, 1.0)
    points: Array = numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1) * radius[:, None]
    return points


def ellipse(ratio: float) -> Array:
    """Corners of an ellipse whose axes have this ratio."""
    return regular(48) * numpy.array([1.0, ratio])


def rectangle(ratio: float) -> Array:
    """Corners of a rectangle whose sides have this ratio."""
    return numpy.array([[-1, -ratio], [1, -ratio], [1, ratio], [-1, ratio]]) / numpy.hypot(1, ratio)


def crescent() -> Array:
    """Corners of a moon: the outer arc there, the inner one back."""
    angles = numpy.linspace(0.25 * numpy.pi, 1.75 * numpy.pi, 24)
    outer = numpy.stack([numpy.cos(angles), numpy.sin(angles)], axis=1)
    inner = outer[::-1] * numpy.array([0.45, 1.0]) + numpy.array([0.36, 0.0])
    return numpy.concatenate([outer, inner])


def cross(width: float) -> Array:
    """Corners of a plus sign whose bars are this wide."""
    quarter = numpy.array([[width, width], [width, 1.0], [-width, 1.0]])
    turns = [numpy.linalg.matrix_power(numpy.array([[0, -1], [1, 0]]), quarters) for quarters in range(4)]
    return numpy.concatenate([quarter @ turn.T for turn in turns]) / numpy.hypot(1, width)


SHAPES: dict[str, Array] = {
    "circle": ellipse(1.0),
    "ellipse": ellipse(0.6),
    "triangle": regular(3),
    "square": regular(4),
    "rectangle": rectangle(0.5),
    "pentagon": regular(5),
    "hexagon": regular(6),
    "star-4": regular(4, 0.45),
    "star-5": regular(5, 0.45),
    "star-6": regular(6, 0.55),
    "crescent": crescent(),
    "cross": cross(0.33),
}


def _waves(along: Array, across: Array, cycles: float) -> Array:
    return 0.5 + 0.5 * numpy.sin(2 * numpy.pi * cycles * along)


def _checks(along: Array, across: Array, cycles: float) -> Array:
    return 0.5 + 0.5 * numpy.sign(numpy.sin(numpy.pi * cycles * along) * numpy.sin(numpy.pi * cycles * across))


def _dots(along: Array, across: Array, cycles: float) -> Array:
    bumps = numpy.cos(2 * numpy.pi * cycles * along) + numpy.cos(2 * numpy.pi * cycles * across)
    return (bumps > 0.9).astype("float32")


def _grille(along: Array, across: Array, cycles: float) -> Array:
    lines = numpy.maximum(numpy.cos(2 * numpy.pi * cycles * along), numpy.cos(2 * numpy.pi * cycles * across))
    return (lines > 0.75).astype("float32")


def _bricks(along: Array, across: Array, cycles: float) -> Array:
    rows = numpy.floor(2 * cycles * across)
    joints = numpy.cos(2 * numpy.pi * (cycles * along + 0.5 * (rows % 2))) > 0.85
    return numpy.maximum(joints, numpy.cos(4 * numpy.pi * cycles * across) > 0.75).astype("float32")


def _rings(along: Array, across: Array, cycles: float) -> Array:
    return 0.5 + 0.5 * numpy.sin(2 * numpy.pi * cycles * numpy.hypot(along, across))


def _zigzag(along: Array, across: Array, cycles: float) -> Array:
    return 0.5 + 0.5 * numpy.sin(2 * numpy.pi * cycles * (along + 0.35 * numpy.abs((2 * across) % 1 - 0.5)))


def _scales(along: Array, across: Array, cycles: float) -> Array:
    rows = numpy.floor(2 * cycles * across)
    sideways = (cycles * along + 0.5 * (rows % 2)) % 1 - 0.5
    return numpy.hypot(sideways, (2 * cycles * across) % 1 - 0.2).clip(0, 1)


TEXTURES: dict[str, Callable[[Array, Array, float], Array]] = {
    "waves": _waves,
    "checks": _checks,
    "dots": _dots,
    "grille": _grille,
    "bricks": _bricks,
    "rings": _rings,
    "zigzag": _zigzag,
    "scales": _scales,
}
