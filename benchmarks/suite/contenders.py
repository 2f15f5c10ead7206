"""What is compared: methods with what each is told. Everybody trains as long, and tries as many learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRID = (1 / 3, 1.0, 3.0)
"""Learning rates that everybody tries, as multiples of the backbone's and the contender's own."""


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        name: of the row.
        settings: of ``Registry.add_task``.
        pace: where the grid of learning rates lies: a mask or a factor that starts at 0 wants larger ones.
        share: what a task shall take of the base's bytes, head apart, by the choice of ``rank``; None for no choice.
        recoded: encodings that the finished task is stored in once more, each a row of its own.
    """

    name: str
    settings: Mapping[str, Any]
    pace: float = 1.0
    share: float | None = None
    recoded: tuple[str, ...] = ()

    @property
    def budget(self) -> str:
        """What it was allowed to store, as a share of the base; empty if nobody said."""
        return str(self.settings.get("budget", "")) or (f"{100 * self.share:g}%" if self.share else "")

    @property
    def encoding(self) -> str:
        return str(self.settings.get("encoding", "fp32"))


def _taps(budget: str, encoding: str = "fp32", recoded: tuple[str, ...] = (), method: str = "taps-rank") -> Contender:
    title = f"{method} {budget}" if encoding == "fp32" else f"{method} {budget} {encoding}"
    settings = {"method": method, "budget": budget}
    if encoding != "fp32":
        settings["encoding"] = encoding
    return Contender(title, settings, recoded=recoded)


CONTENDERS: dict[str, Contender] = {
    one.name: one
    for one in (
        Contender("full", {"method": "full"}),
        Contender("head-only", {"method": "head-only"}, pace=3.0),
        Contender("norm-only", {"method": "norm-only"}, pace=3.0),
        Contender("last 25%", {"method": "hard-sharing", "share": "bottom", "own": "25%"}),
        Contender("first 25%", {"method": "hard-sharing", "share": "top", "own": "25%"}),
        # No last 10 %: the ResNet's last layer alone holds a tenth of the parameters, so nothing would fit.
        Contender("first 10%", {"method": "hard-sharing", "share": "top", "own": "10%"}),
        Contender("lora 1%", {"method": "lora"}, pace=3.0, share=0.01),
        Contender("lora 1% int4", {"method": "lora", "encoding": "int4"}, pace=3.0, share=0.01),
        Contender("lora 5%", {"method": "lora"}, pace=3.0, share=0.05, recoded=("int4",)),
        Contender("lora 10%", {"method": "lora"}, pace=3.0, share=0.10, recoded=("int4",)),
        Contender("piggyback", {"method": "piggyback"}),
        Contender("taps penalty", {"method": "taps", "sparsity": 1.0, "penalty": "uniform"}),
        Contender("taps penalty by size", {"method": "taps", "sparsity": 1.0, "penalty": "size"}),
        _taps("5%", method="taps"),
        _taps("10%", method="taps", recoded=("int8", "int4", "int3")),
        _taps("1%", "int4"),
        _taps("2%", "int4"),
        _taps("2%"),
        _taps("5%"),
        _taps("10%", recoded=("int4",)),
        _taps("20%"),
    )
}
