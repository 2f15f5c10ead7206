"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...plugins.methods import LayerState

OPEN, CLOSED, INK = "#0b6e99", "#c4cdd3", "#2b2f33"


def scores_picture(path: Path, layers: Sequence[LayerState], threshold: float, title: str) -> None:
    """Draw one bar a gated layer, in forward order: its score, open or closed, and the threshold. Writes a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(max(6.0, 0.22 * len(layers) + 1.5), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(layers))
    axes.bar(
        places, [layer.score or 0.0 for layer in layers], color=[OPEN if layer.open else CLOSED for layer in layers]
    )
    axes.axhline(threshold, color=INK, linewidth=1, linestyle="--")
    axes.annotate(f"threshold {threshold:g}", (len(layers) - 0.5, threshold), ha="right", va="bottom", color=INK)
    axes.set_xticks(places, [layer.name for layer in layers], rotation=90, fontsize=7)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylabel("score")
    axes.set_title(f"{title}: {sum(layer.open for layer in layers)} of {len(layers)} layers stored", loc="left")
    axes.legend(handles=[Patch(color=OPEN, label="open: stored"), Patch(color=CLOSED, label="closed: the base's")])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
