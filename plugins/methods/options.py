"""The options of the built-in methods; without torch, so that the command line can show them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..options import Options, flag, option

PENALTIES = {"uniform": 0.0, "root": 0.5, "size": 1.0}  # the power of a gate's size that the penalty weighs it with


def _norms(*choices: str) -> Any:
    return option(
        "task",
        "Normalization layers: the task's own, one gate per norm (taps), or the base's.",
        choices=choices,
    )


def _sparsity(**known: Any) -> Any:
    return option(
        1.0,
        "Weight of the sparsity penalty, which closes gates; not used by taps with --budget.",
        metavar="LAMBDA",
        least=0,
        on_resume="retrains",
        **known,
    )


def _score_lr(**known: Any) -> Any:
    return option(0.01, "Learning rate of the gate scores.", metavar="RATE", least=0, on_resume="retrains", **known)


def _rank() -> Any:
    return option(8, "Rank of low-rank factors, or width of adapters.", metavar="R", least=1)


class BuiltIn(Options):
    """Those that the command line has flags for."""

    @classmethod
    def label(cls, name: str) -> str:
        return flag(name)


@dataclass(frozen=True)
class NormOptions(BuiltIn):
    """Of methods that train norms."""

    norms: str = _norms("task", "frozen")


@dataclass(frozen=True)
class TapsOptions(BuiltIn):
    """Of ``taps``."""

    sparsity: float = _sparsity(without_budget=True)
    penalty: str = option(
        "size",
        "Weight of each gate in the sparsity penalty: uniform, or by the size of its layers.",
        choices=tuple(PENALTIES),
        on_resume="retrains",
        without_budget=True,
    )
    threshold: float = option(
        0.1, "Score at or above which a gate is open.", metavar="TAU", on_resume="retrains", without_budget=True
    )
    score_lr: float = _score_lr(without_budget=True)
    norms: str = _norms("task", "gated", "frozen")
    granularity: str = option("layer", "One gate per layer or per block.", choices=("layer", "block"))


@dataclass(frozen=True)
class LoraOptions(NormOptions):
    """Of ``lora``."""

    rank: int = _rank()
    alpha: float = option(16.0, "Low-rank updates are scaled by alpha / rank.", metavar="A", least=0)


@dataclass(frozen=True)
class DiffPruningOptions(NormOptions):
    """Of ``diff-pruning``."""

    keep: float = option(
        0.005, "diff-pruning: fraction of the weights to keep.", metavar="FRACTION", above=0, most=1, unit="share"
    )
    sparsity: float = _sparsity()
    score_lr: float = _score_lr()


@dataclass(frozen=True)
class HardSharingOptions(BuiltIn):
    """Of ``hard-sharing``."""

    share: str = option(
        "bottom", "hard-sharing: end of the model that is shared with the base.", choices=("bottom", "top")
    )
    own: str = option(
        "1",
        "hard-sharing: size of the task's own part, in stages (2) or as a fraction of the parameters (10%).",
        metavar="AMOUNT",
    )


@dataclass(frozen=True)
class AdapterOptions(NormOptions):
    """Of ``vmt-adapter``."""

    rank: int = _rank()


BUILT_IN: tuple[type[Options], ...] = (
    TapsOptions,
    LoraOptions,
    DiffPruningOptions,
    HardSharingOptions,
    AdapterOptions,
)
