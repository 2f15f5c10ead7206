"""The contract of an adaptation method: what trains on a task, and what of it is stored.

A ``Method`` says before training what it will store at least and at most, and then makes an ``Adaptation`` of a model.
The model is timm's own, unmodified: an adaptation works on its parameters around the optimiser's step, so that every
architecture, ``torch.compile``, mixed precision and data parallelism work as they do without it. Three kinds of
method differ in what they do to the model:

- A fixed set of tensors trains: subclass ``FixedSet`` and name them.
- Weights are computed from factors: subclass ``reparametrised.FixedUnits``, or make the ``Adaptation`` a
  ``reparametrised.Reparametrised``.
- Modules are added that do not fold into weights: override ``Method.extend``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ..architectures import Partition
from ..architectures.pieces import Pieces, split, tensor_of
from ..guard import Guarded
from ..options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..encodings.low_rank import LowRankForm
    from .limits import Limit

__all__ = [
    "Adaptation",
    "Delta",
    "Factors",
    "FixedSet",
    "LayerState",
    "Live",
    "Method",
    "MethodSettings",
    "Size",
    "Stored",
]


@dataclass(frozen=True)
class MethodSettings:
    """What a method may be told.

    Attributes:
        options: the method's own, an object of its dataclass ``Method.options``.
        epochs: passes over the training data.
        lr: learning rate of the weights.
        weight_decay: decoupled decay; gated layers decay towards the base, the others towards zero.
        seed: of whatever the method draws.
        limits: what may be stored; all of them hold.
        low_rank_form: that the encoding in use has low-rank factors stored in; None for 32 bits.
        train_common: whether tensors that a set of tasks has in common train; False once they are stored.
    """

    options: Any
    epochs: int = 30
    lr: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0
    limits: tuple[Limit, ...] = ()
    low_rank_form: LowRankForm | None = None
    train_common: bool = True


@dataclass(frozen=True)
class LayerState:
    """Where a layer's gate stands; ``score`` is None for a method without scores."""

    name: str
    open: bool
    score: float | None = None


@dataclass(frozen=True)
class Size:
    """What factors take: values (a mask's bits count as 32 to one value) and bytes."""

    params: int
    bytes: int


@dataclass(frozen=True)
class Stored:
    """What a task stores.

    Attributes:
        tensors: names of tensors, or of rows of them, whose values are stored as the encoding has them.
        factors: sizes by the name of the tensor that is computed from them; none of these is in ``tensors``.
    """

    tensors: frozenset[str]
    factors: Mapping[str, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in (*self.tensors, *self.factors)):
            raise TypeError("Stored takes names of tensors")


@dataclass(frozen=True)
class Factors:
    """What a tensor is computed from.

    Attributes:
        form: name of the ``encodings.Form`` that computes it.
        parts: tensors on the CPU, by part name.
        params: how many values they count as.
    """

    form: str
    parts: Mapping[str, Tensor]
    params: int

    @property
    def size(self) -> Size:
        return Size(self.params, sum(part.nbytes for part in self.parts.values()))


@dataclass(frozen=True)
class Delta:
    """What a task changed.

    Attributes:
        tensors: values in effect, by the name of a tensor or of rows of one.
        layers: the state of each layer, in forward order.
        factors: what the remaining changed tensors are computed from.
    """

    tensors: Mapping[str, Tensor]
    layers: tuple[LayerState, ...]
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def stored(self) -> Stored:
        """The same without the values."""
        return Stored(frozenset(self.tensors), {name: factors.size for name, factors in self.factors.items()})


class Live:
    """A tensor of a model in training, or rows of one, with its gradient.

    Args:
        name: of the tensor, or of rows of it.
        owner: the model's parameter or buffer that holds it.
    """

    def __init__(self, name: str, owner: Tensor) -> None:
        self.name = name
        self.owner = owner
        self.rows = split(name)[1]
        self.base = self.value.clone()

    @property
    def value(self) -> Tensor:
        """A view, without gradient, that writes through to the model."""
        return self._of(self.owner.detach())

    @property
    def grad(self) -> Tensor | None:
        return None if self.owner.grad is None else self._of(self.owner.grad)

    @property
    def trains(self) -> bool:
        """False for running statistics."""
        return self.owner.is_leaf and self.owner.requires_grad

    def drop_grad(self) -> None:
        """Leave no gradient: an optimiser passes over a parameter that has none; rows of one get zeros."""
        if self.rows is None:
            self.owner.grad = None
        elif self.grad is not None:
            self.grad.zero_()

    def _of(self, whole: Tensor) -> Tensor:
        return whole if self.rows is None else whole[self.rows]


def live_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Live]:
    """The model's tensors of these names."""
    owners = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: Live(name, owners[tensor_of(name)]) for name in names}


class Adaptation(Guarded):
    """Trains a set of a model's tensors. Methods whose set changes while training override the hooks.

    Args:
        model: timm's model on the device it will train on, holding the base's weights and a fresh head.
        partition: of that model.
        trained: names of the tensors that train and are stored; running statistics are stored but get no gradient.
        settings: what the method was told.
    """

    kind: ClassVar[str] = "adaptation"
    returns: ClassVar[dict[str, str]] = {"stored": ".methods:Stored", "delta": ".methods:Delta"}

    def __init__(
        self, model: nn.Module, partition: Partition, trained: Iterable[str], settings: MethodSettings
    ) -> None:
        self.model = model
        self.partition = partition
        self.settings = settings
        self.trained = frozenset(trained)
        self.frozen_norms = [norm for norm in partition.norms if not self._moves(norm.tensors)]
        owners = {tensor_of(name) for name in self.trained}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in owners)
        fused = {tensor_of(name) for name in self.trained if split(name)[1] is not None}
        pieces = [name for name in partition.tensors() if tensor_of(name) in fused and name not in self.trained]
        self._held = live_tensors(model, pieces)  # rows of a parameter that trains, which do not

    def _moves(self, tensors: Iterable[str]) -> bool:
        """Whether a norm's statistics may move: they are the task's, or it has none."""
        buffers = dict(self.model.named_buffers())
        statistics = [name for name in tensors if name in buffers]
        return not statistics or not self.trained.isdisjoint(statistics)

    def train(self) -> None:
        """Put the model into training mode, except norms whose statistics stay the base's."""
        self.model.train()
        for norm in self.frozen_norms:
            self.model.get_submodule(norm.name).eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the weights: decay for matrices and kernels, none for vectors."""
        parameters = [p for _, p in self.model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]

    def score_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the scores; empty for a method without scores."""
        return []

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0."""

    def start_step(self, done: float) -> bool:
        """Called before each step; ``done`` is the share of all steps behind it.

        Returns:
            Whether other parameters train from this step on: some require no gradients any more, and ``late_groups``
            may have some that the optimiser does not know.
        """
        return False

    def late_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the weights that came while training; their learning rates rise from 0 anew."""
        return []

    def after_backward(self) -> None:
        """Called with gradients as the backward pass left them; with fp16 they are still scaled."""

    def before_step(self, lr: float) -> None:
        """Called with gradients in their true scale, before the optimisers step at learning rate ``lr``."""

    def after_step(self) -> None:
        """Called after the optimisers' step."""
        for held in self._held.values():
            held.value.copy_(held.base)

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch: the model is now to compute with what would be stored."""

    def penalty(self) -> float:
        """The value of the penalty that the method adds to the task's loss."""
        return 0.0

    def settled(self, epoch: int) -> bool:
        """Whether the result of this epoch may be chosen as the best one."""
        return True

    def layer_states(self) -> tuple[LayerState, ...]:
        """Where each layer's gate stands, in forward order: open where the layer trains."""
        return tuple(
            LayerState(layer.name, open=not self.trained.isdisjoint(layer.tensors)) for layer in self.partition.layers
        )

    def stored(self) -> Stored:
        """What would be stored if training stopped now."""
        return Stored(self.trained)

    def factors(self) -> dict[str, Factors]:
        """The factors that ``stored`` names, on the CPU."""
        return {}

    def delta(self) -> Delta:
        """A copy, on the CPU, of what would be stored if training stopped now."""
        tensors = Pieces(self.model.state_dict())
        stored = sorted(self.stored().tensors)
        values = {name: tensors[name].detach().cpu().clone() for name in stored}
        return Delta(values, self.layer_states(), self.factors())

    def kept(self) -> frozenset[str]:
        """Names of the model's tensors that checkpoints keep: all that train, but those that others give back."""
        return self.trained

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the model and the optimisers: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""

    def begin_again(self) -> None:
        """Called after ``load_state_dict`` if settings that weights depend on have changed since: the run starts at its
        first epoch, with the weights that it has.
        """


class Method(Guarded, ABC):
    """A way to adapt a base to a task.

    Attributes:
        name: what ``add-task --method`` and the catalog call it.
        summary: one line for ``taps-registry plugins`` and the docs.
        options: dataclass of the options that it takes; others are an error, not a silent no-op.
        fits_limits: whether what it stores is made to fit ``settings.limits``. Others take a budget only if the most
            that they could store fits.
        needs_limits: whether the method cannot do without ``--budget``.
    """

    kind: ClassVar[str] = "method"
    returns: ClassVar[dict[str, str]] = {
        "least": ".methods:Stored",
        "most": ".methods:Stored",
        "adapt": ".methods:Adaptation",
        "extension": "builtins:dict",
        "common": "builtins:frozenset",
    }
    blames: ClassVar[dict[str, tuple[type[Exception], ...]]] = {"check": (ValueError,)}

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    fits_limits: ClassVar[bool] = False
    needs_limits: ClassVar[bool] = False

    @classmethod
    def settings(cls, **values: Any) -> MethodSettings:
        """Settings for this method, with the given options among them and defaults for the others.

        Raises:
            ValueError: for an option that it does not take, or a value that makes no sense.
        """
        common = {declared.name for declared in fields(MethodSettings)}
        given = {name: value for name, value in values.items() if name not in common}
        return MethodSettings(
            cls.options.of(given), **{name: value for name, value in values.items() if name in common}
        )

    def check(self, settings: MethodSettings) -> None:
        """Raise ValueError, with a text for the user, for settings that the method cannot work with.

        Each option by itself has been checked already.
        """

    @abstractmethod
    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        """What the cheapest outcome stores: a budget is held against it before training."""

    def most(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        """What the dearest outcome stores; by default there is but one."""
        return self.least(model, partition, settings)

    @abstractmethod
    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        """Make ``model`` trainable."""

    # For methods that do not fold into the model's weights

    def extension(self, settings: MethodSettings) -> dict[str, Any]:
        """Arguments of ``extend``, kept in the artifact; empty for a method that adds no modules."""
        return {}

    def extend(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        """Add modules beside the model's own, before it trains and each time it is composed.

        Their tensors become part of ``model.state_dict()``, where ``adapt`` and the artifact find them. Only called if
        ``extension`` gave arguments.
        """

    def common(self, model: nn.Module) -> frozenset[str]:
        """Names of tensors of an extended model that a set of tasks has in common.

        They train with the first task of the set (``settings.train_common``), are stored as an object of their own,
        and stay frozen for later tasks.
        """
        return frozenset()


class FixedSet(Method):
    """A method that trains the same tensors from beginning to end, and stores them."""

    @abstractmethod
    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        """Names of what trains and is stored."""

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return Stored(frozenset(self.tensors(model, partition, settings)))

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        return Adaptation(model, partition, self.tensors(model, partition, settings), settings)


def head_and_norms(partition: Partition, settings: MethodSettings) -> frozenset[str]:
    """The head, and the norms where every task has its own, by the option ``norms``."""
    has_own_norms = settings.options.norms == "task"
    return frozenset(partition.head).union(partition.norm_tensors() if has_own_norms else ())
