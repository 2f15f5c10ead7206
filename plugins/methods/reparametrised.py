"""Training factors from which a model's weights are computed: low-rank deltas, masks, modulators, ...

The forward pass stays timm's. Before it, each weight is computed from its factors and written into the model; after
the backward pass, the weight's gradient ``G`` is passed on to the factors by the chain rule, which autograd knows. So a
method is its formula for the weight, and works for linear layers and for convolutions of any stride, padding, dilation
and groups alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..architectures import Layer, Partition
from ..architectures.pieces import tensor_of
from ..errors import PluginError
from . import Adaptation, Delta, Factors, Live, Method, MethodSettings, Size, Stored, head_and_norms, live_tensors


class Unit(ABC):
    """One weight computed from factors.

    Attributes:
        form: name of the ``encodings.Form`` that its parts are stored in.
        live: the weight in the model; ``live.base`` is the base's.
        factors: what trains, by name.
        decays: whether weight decay pulls the factors towards 0; False where 0 is not the base's function.
    """

    form: str
    decays: ClassVar[bool] = True

    def __init__(self, live: Live, factors: Mapping[str, Tensor]) -> None:
        self.live = live
        self.factors = {name: nn.Parameter(_of_its_own(value.to(live.base))) for name, value in factors.items()}

    @abstractmethod
    def weight(self) -> Tensor:
        """The weight in effect, with the graph back to the factors."""

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """What is stored: from these the form gives the weight back."""

    @abstractmethod
    def size(self) -> Size:
        """What the parts take."""

    @property
    def in_factors(self) -> bool:
        """Whether the parts take less than the weight itself, which is then stored in their place."""
        return self.size().bytes < self.live.base.nbytes

    @torch.no_grad()
    def write(self) -> None:
        """Put the weight into the model."""
        self.live.value.copy_(self.weight())

    @torch.enable_grad()
    def pull_back(self) -> None:
        """Pass the weight's gradient on to the factors."""
        if self.live.grad is not None:
            torch.autograd.backward(self.weight(), self.live.grad)


class Product(Unit):
    """A weight ``W0 + U D``, with factors of low rank."""

    @abstractmethod
    def pair(self) -> tuple[Tensor, Tensor]:
        """``U (C_out, r)`` and ``D (r, d)``, with the graph back to the factors."""

    def weight(self) -> Tensor:
        up, down = self.pair()
        return self.live.base + (up @ down).reshape(self.live.base.shape)

    @torch.enable_grad()
    def pull_back(self) -> None:
        """``dL/dU = G D^T`` and ``dL/dD = U^T G``, without computing the weight anew: a GPU waits for launches."""
        if self.live.grad is None:
            return
        up, down = self.pair()
        whole = self.live.grad.reshape(len(up), -1).to(up.dtype)
        for factor, gradient in ((up, whole @ down.detach().T), (down, up.detach().T @ whole)):
            if not factor.requires_grad:
                continue  # one side is frozen
            if factor.is_leaf and factor.grad is None:
                factor.grad = gradient  # which autograd would copy
            else:
                torch.autograd.backward(factor, gradient)

    @torch.no_grad()
    def write(self) -> None:
        rows, value = len(self.live.base), self.live.value
        if value.is_contiguous():
            torch.addmm(self.live.base.reshape(rows, -1), *self.pair(), out=value.view(rows, -1))
        else:
            super().write()


class Reparametrised(Adaptation):
    """Trains the factors of some weights, and plain tensors beside them.

    Args:
        model: as for ``Adaptation``.
        partition: of that model.
        units: the weights that are computed.
        always: names of plain tensors that train and are stored.
        settings: what the method was told.
    """

    def __init__(
        self,
        model: nn.Module,
        partition: Partition,
        units: Sequence[Unit],
        always: Iterable[str],
        settings: MethodSettings,
    ) -> None:
        self.units = tuple(units)
        self.always = frozenset(always)
        super().__init__(model, partition, self.always.union(unit.live.name for unit in units), settings)
        self.write()

    def write(self) -> None:
        """Put all weights into the model."""
        for unit in self.units:
            unit.write()

    def after_backward(self) -> None:
        for unit in self.units:
            unit.pull_back()
        for unit in self.units:
            unit.live.owner.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.write()

    def parameter_groups(self) -> list[dict[str, Any]]:
        computed = {id(unit.live.owner) for unit in self.units}
        plain = [
            {**group, "params": [p for p in group["params"] if id(p) not in computed]}
            for group in super().parameter_groups()
        ]
        return [*plain, *self.factor_groups()]

    def factor_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser of the factors."""
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for unit in self.units:
            groups[unit.decays].extend(unit.factors.values())
        return [
            {"params": factors, "weight_decay": self.settings.weight_decay if decays else 0.0}
            for decays, factors in groups.items()
        ]

    def active(self) -> Iterable[Unit]:
        """The units that are stored."""
        return self.units

    def stored(self) -> Stored:
        return stored(self.active(), self.always)

    def factors(self) -> dict[str, Factors]:
        return {
            unit.live.name: Factors(
                unit.form,
                {name: part.detach().cpu().contiguous().clone() for name, part in unit.parts().items()},
                unit.size().params,
            )
            for unit in self.active()
            if unit.in_factors
        }

    def delta(self) -> Delta:
        whole = super().delta()
        return Delta(whole.tensors, whole.layers, self.factors())

    def kept(self) -> frozenset[str]:
        """Weights follow from their factors, which are in ``state_dict``."""
        return self.always

    def state_dict(self) -> dict[str, Any]:
        factors = {unit.live.name: {n: p.detach() for n, p in unit.factors.items()} for unit in self.units}
        return {"factors": factors}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for unit in self.units:
            for name, factor in unit.factors.items():
                factor.copy_(state["factors"][unit.live.name][name])
        self.write()


def _of_its_own(value: Tensor) -> Tensor:
    """A copy in memory as torch lays it out: products round by alignment and strides, and a file has its own."""
    return value.clone(memory_format=torch.contiguous_format)


def stored(units: Iterable[Unit], always: Iterable[str]) -> Stored:
    """What is stored of these units and plain tensors: weights or factors, whichever take fewer bytes."""
    chosen = list(units)
    return Stored(
        frozenset(always).union(unit.live.name for unit in chosen if not unit.in_factors),
        {unit.live.name: unit.size() for unit in chosen if unit.in_factors},
    )


def matrices(model: nn.Module, layers: Iterable[Layer]) -> list[Live]:
    """The weights of two or more dimensions in these layers."""
    names = [name for layer in layers for name in layer.tensors]
    return [live for live in live_tensors(model, names).values() if live.owner.ndim >= 2]


def units_of(method: str, model: nn.Module, layers: Iterable[Layer], make: Callable[[Live], Unit | None]) -> list[Unit]:
    """A unit for each matrix in these layers that ``make`` has one for.

    Raises:
        PluginError: if it has none for any.
    """
    units = [unit for unit in map(make, matrices(model, layers)) if unit is not None]
    if not units:
        raise PluginError(f"--method {method} finds no layer in {type(model).__name__} that it can adapt.")
    return units


def groups_of(model: nn.Module, live: Live) -> int:
    """Groups of the convolution that owns a weight; 1 for other layers."""
    return int(getattr(model.get_submodule(tensor_of(live.name).rpartition(".")[0]), "groups", 1))


class FixedUnits(Method):
    """A method that computes the same weights from factors from beginning to end, and stores the factors.

    Attributes:
        adaptation: that trains them.
    """

    adaptation: ClassVar[type[Reparametrised]] = Reparametrised

    @abstractmethod
    def units(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Sequence[Unit]:
        """The weights that are computed; ``units_of`` makes one for each matrix."""

    def plain(self, partition: Partition, settings: MethodSettings) -> Iterable[str]:
        """Names of what trains as it is: by default the head, and the norms by the option ``norms``."""
        return head_and_norms(partition, settings)

    def least(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Stored:
        return stored(self.units(model, partition, settings), self.plain(partition, settings))

    def adapt(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> Adaptation:
        units, plain = self.units(model, partition, settings), self.plain(partition, settings)
        return self.adaptation(model, partition, units, plain, settings)
