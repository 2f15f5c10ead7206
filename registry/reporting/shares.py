"""How much of each layer a task stores, against the layer's size in the base in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..records import LayerInfo, TaskLayer

FLOAT = 4  # bytes of a value in float32


def stored_shares(stored: Iterable[TaskLayer], layers: Iterable[LayerInfo]) -> dict[str, float]:
    """The share of each layer's bytes that a task stores, by the layer's name; 0 for a layer that is the base's.

    A layer stored as it is has a share of 1. Factors of a high rank can take more than the layer, and a norm's
    counter of batches is not among its parameters: shares can be above 1.
    """
    sizes = {layer.name: FLOAT * layer.params for layer in layers}
    return {part.name: part.bytes / sizes[part.name] for part in stored if sizes.get(part.name)}


def share_text(share: float) -> str:
    """Per cent, short enough for a cell of the heat map: ``12 %``, ``0.4 %``."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.0f} %" if value >= 9.95 or not value else f"{value:.1f} %"
