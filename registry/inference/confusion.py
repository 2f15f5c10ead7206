"""The picture of a confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

MOST = 30  # classes whose names and counts can be read


def picture(classes: Sequence[str], matrix: NDArray[Any]) -> bytes:
    """

    PNG of counts ``(classes, classes)``: rows are true classes, columns predicted ones, colours shares of the row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    side = min(max(3.5, 0.45 * count + 2), 16)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = matrix / numpy.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= MOST:
        names = [name.replace("$", r"\$") for name in classes]  # a dollar sign would begin a formula
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for (row, column), images in numpy.ndenumerate(matrix):
            if images:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(images), ha="center", va="center", color=shade, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
