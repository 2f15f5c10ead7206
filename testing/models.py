"""Models and tensors for the suites: small, seeded, and compared to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..plugins.architectures import Partition
from ..plugins.architectures.pieces import Pieces

CLASSES = 3

Factory = Callable[[int], nn.Module]
"""From a number of classes to a model."""


def made(factory: Factory, classes: int = CLASSES) -> nn.Module:
    """A model in eval mode whose every parameter is off its initial value: zeros and ones would hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory(classes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return model


def timm_factory(name: str, arguments: Mapping[str, Any]) -> Factory:
    """Makes timm's model of this name."""

    def make(classes: int) -> nn.Module:
        model: nn.Module = timm.create_model(name, num_classes=classes, **arguments)
        return model

    return make


def copy_of(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """``made`` of timm's model of this name; a suite wants dozens alike, and copying one takes half the time."""
    return deepcopy(_kept(name, json.dumps(dict(arguments))))


@cache
def _kept(name: str, arguments: str) -> nn.Module:
    return made(timm_factory(name, json.loads(arguments)))


def noise(count: int, pixels: int, seed: int = 0) -> Tensor:
    """Images ``(count, 3, pixels, pixels)``."""
    return torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model: nn.Module, pixels: int) -> Tensor:
    """What a model makes of two images of noise."""
    found: Tensor = model(noise(2, pixels))
    return found


def copied(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model as they are now."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are alike to the last bit: 0 is not -0, and NaN is itself."""
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(_bytes(first), _bytes(second))


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that only one has, or that are not alike to the last bit."""
    both = first.keys() & second.keys()
    alike = {name for name in both if same_bits(first[name], second[name])}
    return sorted((first.keys() | second.keys()) - alike)


def pieces_of(partition: Partition, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, or rows of them, as the partition names them; and whole ones that a method added to the model."""
    named = Pieces(tensors)
    whole = {name.partition("[")[0] for name in partition.tensors()}
    return {name: named[name] for name in (*partition.tensors(), *(name for name in tensors if name not in whole))}


def few(names: Iterable[str]) -> str:
    """Some of the names, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
