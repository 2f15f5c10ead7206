"""What each method stores on two models of timm, counted without their weights: the table in docs/methods.md."""

from __future__ import annotations

import timm
import torch
from torch import nn

from taps_registry.plugins import PluginError, Stored
from taps_registry.plugins.architectures import Partition
from taps_registry.plugins.manager import PluginManager
from taps_registry.registry.models.measure import parameters, roles
from taps_registry.registry.models.prices import Prices

MODELS = {"ResNet-50": "resnet50", "ViT-S/16": "vit_small_patch16_224"}


def table() -> str:
    """Values and share of the backbone's bytes, at least and at most, for every method with its default options."""
    plugins = PluginManager()
    columns = [column for model in MODELS for column in (f"{model}, at least", "at most")]
    lines = ["| method | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name in plugins.methods():
        cells = [cell for model in MODELS.values() for cell in _cells(plugins, name, model)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(plugins: PluginManager, name: str, timm_name: str) -> tuple[str, str]:
    """Least and most; a dash where the method cannot work on the model."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model(timm_name)
    names = {key for key, _ in model.named_parameters()}
    partition = plugins.partition(plugins.architecture_for(model), model)
    method = plugins.method(name)
    try:
        with torch.device("meta"):
            method.extend(model, method.extension(method.settings())) if method.extension(method.settings()) else None
        least, most = (
            method.least(model, partition, method.settings()),
            method.most(model, partition, method.settings()),
        )
    except PluginError:
        return "–", "–"
    backbone = 4 * parameters(model, without={*partition.head, *(set(dict(model.named_parameters())) - names)})
    first, last = (_cell(plugins, model, partition, stored, backbone) for stored in (least, most))
    return first, ("the same" if first == last else last)


def _cell(plugins: PluginManager, model: nn.Module, partition: Partition, stored: Stored, backbone: int) -> str:
    """Values, and bytes as a share of so many; the head is left out of both."""
    tensors = model.state_dict()
    size = Prices(tensors, roles(partition), plugins.encoding("fp32")).footprint(stored)
    head = sum(tensors[name].nbytes for name in partition.head)
    return f"{size.params.weights + size.params.norms:,} ({(size.bytes - head) / backbone:.2%})"


if __name__ == "__main__":
    print(table())
