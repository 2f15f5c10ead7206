"""The frozen dataclasses that leave the registry. Sizes are in bytes, parameters are counted as single values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..plugins.manager import PluginInfo as PluginInfo


@dataclass(frozen=True)
class InputConfig:
    """What images are turned into before a model sees them; the fields are timm's.

    Attributes:
        size: channels, height, width in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        interpolation: of the resize.
        crop_pct: the share of the resized image that the centre crop keeps.
        crop_mode: ``center``, ``squash`` or ``border``.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> InputConfig:
        """What ``asdict`` made, after JSON has turned its tuples into lists.

        Raises:
            KeyError, TypeError or ValueError: for anything else.
        """
        channels, height, width = raw["size"]
        _require_numbers(int, raw["size"])
        _require_numbers((int, float), (*raw["mean"], *raw["std"], raw["crop_pct"]))
        if not (isinstance(raw["interpolation"], str) and isinstance(raw["crop_mode"], str)):
            raise ValueError("interpolation and crop_mode must be strings")
        return cls(
            size=(channels, height, width),
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
            interpolation=raw["interpolation"],
            crop_pct=raw["crop_pct"],
            crop_mode=raw["crop_mode"],
        )


def _require_numbers(kind: type | tuple[type, ...], values: Sequence[object]) -> None:
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not a number")


@dataclass(frozen=True)
class LayerInfo:
    """A layer or norm of a base, as its plugin named it."""

    name: str
    kind: str
    stage: str
    params: int


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        model: timm's name of it.
        arguments: what ``timm.create_model`` got beside the name.
        plugin: which architecture plugin laid out its layers.
        plugin_version: the package that brought it, with its version.
        digest: SHA-256 over its tensors' names, shapes, dtypes and bytes: its identity.
        object: SHA-256 of the file that holds them.
        params: values in its parameters, classifier included.
        backbone_params: the same without the classifier; what shares are shares of.
        bytes: of that file.
        layers: gated layers, then norms.
    """

    name: str
    model: str
    arguments: Mapping[str, Any]
    plugin: str
    plugin_version: str
    digest: str
    object: str
    params: int
    backbone_params: int
    bytes: int
    input: InputConfig
    created: datetime
    layers: tuple[LayerInfo, ...] = ()


@dataclass(frozen=True)
class Params:
    """Values stored for a task, by part; biases count as weights, running statistics as norms."""

    weights: int = 0
    norms: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.norms + self.head


@dataclass(frozen=True)
class TaskLayer:
    """One layer of a task's artifact; ``score`` is None where the method has none."""

    name: str
    kind: str
    stage: str
    open: bool
    score: float | None
    params: int
    bytes: int


@dataclass(frozen=True)
class Task:
    """A task. While it is in training it has neither version nor digest.

    Attributes:
        state: ``training`` or ``ready``.
        classes: in the order of the head's outputs.
        input: what its images are turned into.
        common: name of the set of tasks that it has tensors in common with; empty if none.
        packages: of its method and each form, with their versions: ``{"method taps": "taps-registry 0.1.0"}``.
        layers: what its artifact holds; empty in listings.
    """

    name: str
    base: str
    state: str
    classes: tuple[str, ...] = ()
    version: int | None = None
    method: str = ""
    encoding: str = ""
    digest: str = ""
    bytes: int = 0
    open_layers: int = 0
    gated_layers: int = 0
    params: Params = Params()
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = None
    input: InputConfig | None = None
    created: datetime | None = None
    set: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[TaskLayer, ...] = ()


@dataclass(frozen=True)
class TaskSet:
    """A set of tasks with tensors in common; its name is unique on its base.

    Attributes:
        arguments: of the method's ``extend``.
        digest: of the object that holds the tensors; empty while the first of its tasks trains them.
    """

    name: str
    method: str
    arguments: Mapping[str, Any]
    digest: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetCost:
    """Tensors that several tasks have in common, stored once: which set, what it takes, and who is in it."""

    name: str
    method: str
    digest: str
    params: int
    bytes: int
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class TaskCost:
    """What one task costs.

    ``share_of_base`` is (weights + norms) / backbone parameters; ``share_of_bytes`` is its file against the base's.
    ``set`` names the set whose tensors it needs beside its own, which are counted there.
    """

    task: str
    version: int
    method: str
    open_layers: int
    layers: int
    params: Params
    bytes: int
    share_of_base: float
    share_of_bytes: float
    metrics: Mapping[str, float]
    set: str = ""


@dataclass(frozen=True)
class LayerCost:
    """What the tasks of a base store of one layer, or of one kind of layer.

    Attributes:
        layers: how many layers that is.
        open: how often one of them is stored, over all tasks.
        params: values of the base in them.
        task_params: values that tasks store for them.
        task_bytes: bytes that tasks store for them.
    """

    name: str
    kind: str
    layers: int
    open: int
    params: int
    task_params: int
    task_bytes: int


@dataclass(frozen=True)
class Total:
    """A base with its tasks.

    Attributes:
        params: of the base and all its tasks.
        bytes: likewise, on disk; an object that several tasks have in common counts once.
        multiple: 1 + sum of the tasks' shares of the base's parameters, and of the shares of what they have in common.
        multiple_of_bytes: ``bytes`` against those of the base.
        multiple_if_copied: the same if every task were a copy of the base.
    """

    params: int
    bytes: int
    multiple: float
    multiple_of_bytes: float
    multiple_if_copied: float


@dataclass(frozen=True)
class BudgetUse:
    """A budget and what is used of it. ``base`` is None for that of the whole registry.

    Tasks count against a budget, the base models themselves do not.
    """

    base: str | None
    max_bytes: int | None
    max_params: int | None
    used_bytes: int
    used_params: int


@dataclass(frozen=True)
class BaseCost:
    """A base, its tasks, their sum, and the budget of the base if it has one."""

    base: str
    params: int
    bytes: int
    tasks: tuple[TaskCost, ...]
    total: Total
    budget: BudgetUse | None = None
    by: tuple[LayerCost, ...] = ()
    sets: tuple[SetCost, ...] = ()


@dataclass(frozen=True)
class CostReport:
    """The answer to ``cost``; ``budget`` is that of the whole registry if it has one."""

    bases: tuple[BaseCost, ...]
    budget: BudgetUse | None = None


@dataclass(frozen=True)
class Footprint:
    """What storing a task takes; ``bytes`` is that of the artifact's tensors, or of its file once there is one."""

    params: Params
    bytes: int


@dataclass(frozen=True)
class Allowance:
    """One part of ``--budget``: its text, and what it allows in bytes or parameters.

    The amount of a percentage is for weights and norms; others count the head as well.
    """

    budget: str
    amount: int
    unit: str


@dataclass(frozen=True)
class Estimate:
    """What a task would store, excluding its file's header; shares are of the base's backbone, without the head.

    Attributes:
        least: the smallest result.
        most: the largest one, if no budget limited it.
        refused: why a budget would refuse even the smallest result; empty if none would.
        allowed: what ``--budget`` limits the result to; empty without one.
    """

    task: str
    base: str
    method: str
    encoding: str
    classes: tuple[str, ...]
    least: Footprint
    most: Footprint
    least_share: float
    most_share: float
    refused: str = ""
    allowed: tuple[Allowance, ...] = ()


@dataclass(frozen=True)
class Run:
    """One attempt at a task.

    Attributes:
        state: ``running``, ``interrupted``, ``failed``, ``over-budget`` or ``finished``; a run whose process is gone
            without a word is listed as ``interrupted``.
        epoch: epochs completed.
        tracker_run: the tracker's own id of the run.
    """

    id: str
    task: str
    base: str
    state: str
    method: str
    seed: int
    epoch: int
    epochs: int
    error: str
    tracker: str
    tracker_run: str
    fingerprint: str
    settings: Mapping[str, Any]
    created: datetime
    heartbeat: datetime


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, best first, with their probabilities."""

    image: str
    classes: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        return self.classes[0][0]


@dataclass(frozen=True)
class ClassScores:
    """One class in an evaluation; ``precision``, ``recall`` and ``f1`` are shares of 1, 0 where they are undefined.

    Attributes:
        precision: of the images taken for it, how many are of it.
        recall: of its images, how many were taken for it.
        f1: the harmonic mean of both.
    """

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Evaluation:
    """A task on a set of images.

    Attributes:
        version: of the task's artifact.
        split: of the images: ``test``, ``val``, ``train``, or ``all`` of a folder without splits.
        accuracy: a share of 1.
        balanced_accuracy: mean recall of the classes that have images.
        macro_f1: mean F1 of the classes that have images.
        loss: mean cross-entropy in nats.
        notes: what a user should know of the images.
    """

    task: str
    version: int
    split: str
    images: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    loss: float
    classes: tuple[ClassScores, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Something ``verify`` found: which object, task or base, and what is wrong with it."""

    subject: str
    what: str


@dataclass(frozen=True)
class Collected:
    """What ``gc`` removed, or would remove: objects, leftover files and folders of runs, and their bytes."""

    removed: tuple[str, ...]
    bytes: int
    dry_run: bool
