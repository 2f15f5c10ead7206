"""What a task can be told, which values make sense, and which may change when a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...plugins.encodings import COMPRESSED
from ...plugins.methods import PENALTIES, Method, MethodSettings
from ..amounts import parse
from ..data.transforms import AUGMENTATIONS
from ..errors import IntegrityError, SettingsError
from ..secrets import MASK, check_url, masked
from ..seeds import check_seed

NORMS = ("task", "gated", "frozen")
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
GRANULARITIES = ("layer", "block")
SHARES = ("bottom", "top")
METHOD_OPTIONS = frozenset(
    {
        "sparsity",
        "penalty",
        "threshold",
        "score_lr",
        "norms",
        "granularity",
        "rank",
        "alpha",
        "keep",
        "share",
        "own",
        "arguments",
    }
)
FREELY_CHANGED = frozenset(
    {
        "data",
        "val_data",
        "test_data",
        "encoding",
        "encoding_tolerance",
        "device",
        "precision",
        "workers",
        "image_memory",
        "processes",
        "tracker",
        "tracking_uri",
    }
)
TRAINED_UNDER = ("sparsity", "penalty", "budget", "threshold", "score_lr", "lr", "weight_decay")
AUTO = "auto"  # the encoding that is chosen when the weights are known
CHOICES = {
    "norms": NORMS,
    "penalty": tuple(PENALTIES),
    "granularity": GRANULARITIES,
    "share": SHARES,
    "precision": tuple(PRECISIONS),
    "augment": tuple(AUGMENTATIONS),
}


@dataclass(frozen=True)
class TaskSettings:
    """Everything that decides a run. Two runs with equal settings on equal data and machines end with equal bytes.

    Attributes:
        data: a folder, or ``SCHEME/NAME[@ROOT]`` for ``timm.data.create_dataset``.
        val_data: where validation images are, if not part of ``data``.
        test_data: where test images are, if not part of ``data``.
        method: how the base is adapted; by default ``taps``, and within a budget ``taps-rank``, which spends it better,
            unless what is asked of the gates is what ``taps`` alone can do.
        epochs: passes over the training images.
        batch_size: images a step and process.
        lr: learning rate of the weights; None for the default of the base's plugin.
        weight_decay: decoupled.
        score_lr: learning rate of the gates' scores.
        sparsity: lambda, the strength of the penalty on the scores.
        penalty: what a gate weighs in it: ``size``, ``root`` or ``uniform``, the paper's.
        budget: what the task may store, such as ``5%``, ``2MB``, ``500k``, ``remaining/3``; empty for no limit.
        threshold: a gate is open while its score is at least this.
        norms: ``task``, ``gated`` or ``frozen``.
        granularity: ``layer`` or ``block``: what a gate decides on.
        rank: of low-rank factors, and width of adapters.
        alpha: low-rank deltas are multiplied by ``alpha / rank``.
        keep: share of the weights that a pruned delta keeps.
        share: which end of the model stays shared: ``bottom`` or ``top``.
        own: how much of it is the task's own: stages (``2``), or a share of the layers' parameters (``10%``).
        common: name of the set of tasks to have projections in common with; empty for the method's name.
        arguments: options of a plugin's method.
        encoding: how changed layers and norms are stored; ``auto`` for the smallest that is good enough.
        encoding_tolerance: points of validation accuracy that ``auto`` may lose.
        augment: ``none``, ``light`` or ``standard``.
        input_size: pixels; None for the base's.
        seed: of the split, the head, the order and the augmentation of images.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``fp32``, ``bf16`` or ``fp16``, of the forward and backward pass.
        workers: processes that load images; None for as many as the machine can spare. Results do not depend on it.
        image_memory: bytes to keep decoded images in; 0 for none, None for a quarter of the memory that is free when
            training begins. Results do not depend on it.
        processes: processes that train, one a device.
        tracker: plugin that follows the run.
        tracking_uri: where to; empty for inside the registry.
        skip_bad_images: leave unreadable images out instead of refusing them.
    """

    data: str
    val_data: str = ""
    test_data: str = ""
    method: str = ""
    epochs: int = 30
    batch_size: int = 32
    lr: float | None = None
    weight_decay: float = 0.01
    score_lr: float = 0.01
    sparsity: float = 1.0
    penalty: str = "size"
    budget: str = ""
    threshold: float = 0.1
    norms: str = "task"
    granularity: str = "layer"
    rank: int = 8
    alpha: float = 16.0
    keep: float = 0.005
    share: str = "bottom"
    own: str = "1"
    common: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "fp32"
    encoding_tolerance: float = 0.2
    augment: str = "standard"
    input_size: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None
    image_memory: int | None = None
    processes: int = 1
    tracker: str = "mlflow"
    tracking_uri: str = ""
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        if not self.method:
            by_layer = self.granularity == "layer" and self.norms != "gated"
            object.__setattr__(self, "method", "taps-rank" if self.budget and by_layer else "taps")

    @classmethod
    def stored(cls, raw: Mapping[str, Any], task: str) -> TaskSettings:
        """Those that the catalog has of a task. Raises IntegrityError if something else than settings is there."""
        try:
            made = cls(**raw)
            made.check()
        except (TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                f"The settings of {task!r} in the catalog are damaged: {error}. Restore the catalog from a backup."
            ) from error
        return made

    def check(self) -> None:
        """Raises SettingsError for the first value that makes no sense."""
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("workers", 0),
            ("image_memory", 0),
            ("processes", 1),
            ("input_size", 1),
            ("rank", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingsError(f"{option(name)} must be at least {least}, got {value}.")
        for name in ("lr", "weight_decay", "score_lr", "sparsity", "alpha", "keep", "encoding_tolerance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise SettingsError(f"{option(name)} must be a finite number of at least 0, got {value}.")
        check_seed(self.seed)
        if not math.isfinite(self.threshold):
            raise SettingsError(f"--threshold must be a finite number, got {self.threshold}.")
        parse(self.budget)
        check_url(self.tracking_uri, "--tracking-uri")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise SettingsError(f"{option(name)} must be one of {', '.join(allowed)}, got {value!r}.")
        if self.encoding != AUTO and self.encoding_tolerance != TaskSettings.encoding_tolerance:
            raise SettingsError("--encoding-tolerance is for --encoding auto; leave it out.")

    @property
    def encoding_before(self) -> str:
        """The encoding until there is something to choose it for: ``auto`` begins with the exact one."""
        return "fp32" if self.encoding == AUTO else self.encoding

    def check_method(self, method: Method) -> None:
        """Raises SettingsError if an option was changed that means nothing to the method, or does not suit it."""
        decided = {"sparsity", "penalty", "threshold", "score_lr"} if self.budget else set()  # by the budget
        meant = (method.options - decided) | (
            {"common"} if self.common and method.extension(self.for_method(0.0)) else set()
        )
        plain = TaskSettings(data="")
        unused = [
            option(name)
            for name in sorted((METHOD_OPTIONS | {"common"}) - meant)
            if getattr(self, name) != getattr(plain, name)
        ]
        if unused:
            within = "within a budget " if decided.intersection(method.options) else ""
            raise SettingsError(f"--method {method.name} {within}does not accept {', '.join(unused)}; leave it out.")
        if method.needs_limits and not self.budget:
            raise SettingsError(f"--method {method.name} spends a budget: say which, such as --budget 1%.")
        try:
            method.check(self.for_method(0.0))
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def for_method(self, default_lr: float, *, train_common: bool = True) -> MethodSettings:
        """What the method is told of it."""
        told = {name: getattr(self, name) for name in METHOD_OPTIONS}
        lr = self.lr if self.lr is not None else default_lr
        return MethodSettings(
            epochs=self.epochs,
            lr=lr,
            weight_decay=self.weight_decay,
            seed=self.seed,
            train_common=train_common,
            **told,
        )

    def as_json(self) -> dict[str, Any]:
        """For the catalog and the tracker: without passwords."""
        return {**asdict(self), "tracking_uri": masked(self.tracking_uri)}

    def changed(self, changes: Mapping[str, Any]) -> TaskSettings:
        """These settings for a resumed run.

        Raises:
            SettingsError: for a change that would make it another run.
        """
        real = {name: value for name, value in changes.items() if getattr(self, name) != value}
        fixed = sorted(set(real) - FREELY_CHANGED - set(TRAINED_UNDER) - {"epochs"})
        if fixed:
            raise SettingsError(
                f"A resumed run keeps its {', '.join(option(name) for name in fixed)}. "
                "Leave it out, or `taps-registry remove` the task and add it anew."
            )
        if MASK in real.get("tracking_uri", self.tracking_uri):
            if "tracker" not in real:
                raise SettingsError(
                    f"The run is tracked at {self.tracking_uri}, whose password is not stored: name it again with "
                    "--tracking-uri, or go on with --tracker none."
                )
            real["tracking_uri"] = ""
        if real.get("encoding", AUTO) != AUTO and "encoding_tolerance" not in changes:
            real["encoding_tolerance"] = TaskSettings.encoding_tolerance  # it was for ``auto``
        return replace(self, **real)

    def trained_under(self) -> dict[str, Any]:
        """The settings that weights and gates depend on: if they change, a resumed run trains again.

        Within a budget that is the encoding as well, which decides how much fits; lossless compression does not.
        """
        under = {name: getattr(self, name) for name in TRAINED_UNDER}
        return {**under, "encoding": self.encoding_before.removesuffix(COMPRESSED)} if self.budget else under


def option(name: str) -> str:
    """The command line's name of a field."""
    if name == "arguments":
        return "--method-arg"
    return "--" + name.replace("_", "-")
