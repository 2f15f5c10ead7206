"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...plugins.methods import LayerState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OPEN, CLOSED, INK = "#0b6e99", "#c4cdd3", "#2b2f33"


def scores_picture(path: Path, layers: Sequence[LayerState], threshold: float, title: str) -> None:
    """Draw one bar per gated layer, in forward order: its score, open or closed, and the threshold. Writes a PNG."""
    from matplotlib.patches import Patch

    figure, axes = _bars(layers, [layer.score or 0.0 for layer in layers], "score", title)
    axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"threshold {threshold:g}", (len(layers) - 0.5, threshold), ha="right", va="bottom", color=INK)
    axes.legend(handles=[Patch(color=OPEN, label="open: stored"), Patch(color=CLOSED, label="closed: the base's")])
    figure.savefig(path)


def shares_picture(path: Path, layers: Sequence[LayerState], shares: Mapping[str, float], title: str) -> None:
    """Draw one bar per layer, in forward order: how much of its bytes is stored. Writes a PNG.

    Args:
        path: of the picture.
        layers: of a method without scores.
        shares: 1 for a layer that is stored as large as it is, by name.
        title: without the number of layers.
    """
    heights = [100 * shares.get(layer.name, 0.0) for layer in layers]
    figure, _ = _bars(layers, heights, "stored, % of the layer's bytes", title)
    figure.savefig(path)


def _bars(layers: Sequence[LayerState], heights: Sequence[float], label: str, title: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.22 * len(layers) + 1.5), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(layers))
    axes.bar(places, heights, color=[OPEN if layer.open else CLOSED for layer in layers])
    axes.set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylabel(label)
    axes.set_title(f"{title}: {sum(layer.open for layer in layers)} of {len(layers)} layers stored", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
