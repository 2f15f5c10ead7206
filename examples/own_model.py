"""A model of one's own class, which timm has never heard of, for ``add-base --model tiny-net``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from taps_registry.plugins import Generic, Registrar, Stage, hookimpl


class TinyNet(nn.Module):
    """Three convolutions, each at half the size of the one before, and a classifier.

    Args:
        num_classes: length of the logits; a base is made without saying it, a task's model never.
        width: channels of the first convolution; each further one has twice as many.
    """

    pretrained_cfg = {  # noqa: RUF012  (timm's models have such a dict)
        "input_size": (3, 64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "classifier": "classifier",
    }

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.stages = nn.Sequential(*(halving(given, made) for given, made in pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward_head(self, features: Tensor) -> Tensor:
        """``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.stages(images))


def halving(given: int, made: int) -> nn.Sequential:
    """A convolution with stride 2, a norm and an activation."""
    return nn.Sequential(nn.Conv2d(given, made, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


class TinyNets(Generic):
    """Makes tiny nets, and knows them."""

    name = "tiny-nets"
    fallback = False
    models = ("tiny-net",)

    def build(self, model: str, arguments: Mapping[str, Any]) -> nn.Module:
        return TinyNet(**arguments)  # a TypeError for an argument that it has not becomes a message

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, TinyNet)

    def stage(self, path: str) -> str:
        return ".".join(path.split(".")[:2])

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        assert isinstance(model, TinyNet)
        parts = (Stage(f"stages.{index}", part) for index, part in enumerate(model.stages))
        return (*parts, Stage("head", model.forward_head))


@hookimpl
def register_architectures(registrar: Registrar) -> None:
    registrar.architecture(TinyNets())
