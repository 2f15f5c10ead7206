"""VMT-Adapter and VMT-Adapter-Lite (Xin et al., AAAI 2024, arXiv 2312.08733): adapters beside the MLPs of transformers.

In each block, with ``x`` what the MLP takes ::

    mlp(x) + U gelu(scale_t * (D x) + shift_t)

``D (n, d)`` and ``U (d, n)`` are common to a set of tasks, ``scale_t`` and ``shift_t (n)`` are those of task ``t``. The
common ones train with the first task of the set and are frozen for the others, which store ``2 n`` values a block. In
Lite, ``U`` is the transpose of ``D``. Both start as the base's function: by ``U = 0``, in Lite by ``scale = 0``. There
is no public code of the authors; the formula is this project's reading of the paper. It does not fold into the model's
weights, so the adapter is a module of the model, attached to the MLP by a forward hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..architectures import Partition
from ..errors import PluginError
from ..spec import Registrar, hookimpl
from . import FixedSet, MethodSettings, head_and_norms
from .options import AdapterOptions

ATTRIBUTE = "vmt_adapter"  # of the model, that holds the adapters


class Adapter(nn.Module):
    """What stands beside one MLP.

    Args:
        width: ``d``, channels of the block.
        rank: ``n``, channels of the adapter.
        tied: whether the up-projection is the transpose of the down-projection.
    """

    def __init__(self, width: int, rank: int, *, tied: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = None if tied else nn.Linear(rank, width, bias=False)
        self.scale = nn.Parameter(torch.zeros(rank) if tied else torch.ones(rank))
        self.shift = nn.Parameter(torch.zeros(rank))
        if self.up is not None:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, d)`` to ``(B, N, d)``."""
        hidden = functional.gelu(self.scale * self.down(x) + self.shift)
        return functional.linear(hidden, self.down.weight.T if self.up is None else self.up.weight)


class VmtAdapter(FixedSet):
    """Trains adapters beside the MLPs, the norms and the head."""

    name = "vmt-adapter"
    summary = "scale and shift of adapters with projections shared by tasks, the norms and the head; transformers only"
    options = AdapterOptions
    tied = False

    def extension(self, settings: MethodSettings) -> dict[str, Any]:
        return {"rank": settings.options.rank}

    def extend(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        beside = _mlps(model)
        if not beside:
            raise PluginError(
                f"--method {self.name} needs transformer blocks with an MLP; {type(model).__name__} has none."
            )
        adapters = nn.ModuleList(
            Adapter(first.in_features, arguments["rank"], tied=self.tied) for first in beside.values()
        )
        model.add_module(ATTRIBUTE, adapters)
        for mlp, adapter in zip(beside, adapters, strict=True):
            mlp.register_forward_hook(partial(_beside, adapter))

    def common(self, model: nn.Module) -> frozenset[str]:
        return frozenset(name for name in _own(model) if name.endswith(("down.weight", "up.weight")))

    def tensors(self, model: nn.Module, partition: Partition, settings: MethodSettings) -> frozenset[str]:
        frozen = frozenset() if settings.train_common else self.common(model)
        return head_and_norms(partition, settings) | (_own(model) - frozen)


def _beside(adapter: nn.Module, mlp: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The forward hook of an MLP."""
    beside: Tensor = adapter(inputs[0])
    return output + beside


def _mlps(model: nn.Module) -> dict[nn.Module, nn.Linear]:
    """The MLPs of a transformer's blocks in forward order, each with its first linear layer."""
    mlps = {}
    for name, module in model.named_modules():
        first = getattr(module, "fc1", None)
        if name.rpartition(".")[2] == "mlp" and isinstance(first, nn.Linear):
            mlps[module] = first
    return mlps


def _own(model: nn.Module) -> frozenset[str]:
    """Names of the adapters' tensors."""
    return frozenset(f"{ATTRIBUTE}.{name}" for name in model.get_submodule(ATTRIBUTE).state_dict())


class VmtAdapterLite(VmtAdapter):
    """The same with half the projections."""

    name = "vmt-adapter-lite"
    summary = "like vmt-adapter, with the up-projection tied to the transpose of the down-projection"
    tied = True


@hookimpl
def register_methods(registrar: Registrar) -> None:
    registrar.method(VmtAdapter())
    registrar.method(VmtAdapterLite())
