"""What the paper trained on what, and the figures it printed.

The figures are those of Wallingford et al., CVPR 2022, as its readers remember them: hold them against the paper before
you cite them. In November 2026 some were held against public listings of the papers' results: those of TAPS (flowers,
cars, CUB and the decathlon's mean), of SpotTune (flowers, cars, CUB) and of Piggyback (WikiArt, sketch, cars).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """One task of a protocol.

    Attributes:
        name: of the task, and of its folder.
        classes: how many there are.
        train, test: how many images the published splits have.
    """

    name: str
    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Published:
    """A row of the paper's table.

    Attributes:
        method: as the paper calls it.
        accuracy: in per cent, by the name of a task or ``mean``.
        multiple: parameters of all tasks together, as a multiple of the base's; None if not remembered.
    """

    method: str
    accuracy: Mapping[str, float]
    multiple: float | None = None


@dataclass(frozen=True)
class Protocol:
    """A comparison of the paper.

    Attributes:
        title: for people.
        model: timm's name of the backbone.
        tested_on: the folder that holds the images accuracies are measured on.
        tasks: each a folder of the data.
        published: what the paper printed.
        remark: how ours differs from the paper's by necessity; empty if it need not.
    """

    title: str
    model: str
    tested_on: str
    tasks: tuple[Dataset, ...]
    published: tuple[Published, ...]
    remark: str = ""


def _row(method: str, figures: str, names: tuple[str, ...], multiple: float | None = None) -> Published:
    return Published(method, dict(zip(names, map(float, figures.split("/")), strict=True)), multiple)


SKETCH = ("flowers", "wikiart", "sketch", "cars", "cub")

PROTOCOLS: dict[str, Protocol] = {
    "imagenet-to-sketch": Protocol(
        title="ImageNet-to-Sketch, ResNet-50",
        model="resnet50",
        tested_on="test",
        tasks=(
            Dataset("flowers", 102, 2040, 6149),
            Dataset("wikiart", 195, 42129, 10628),
            Dataset("sketch", 250, 16000, 4000),
            Dataset("cars", 196, 8144, 8041),
            Dataset("cub", 200, 5994, 5794),
        ),
        published=(
            _row("fine-tuning", "95.69/78.42/81.02/91.44/83.37", SKETCH, 6.0),
            _row("head only", "89.14/61.74/65.90/55.52/63.46", SKETCH, 1.0),
            _row("head and norms", "91.07/70.06/78.47/79.41/76.25", SKETCH),
            _row("Piggyback", "94.76/71.33/79.91/89.62/81.59", SKETCH),
            _row("SpotTune", "96.34/75.77/80.2/92.4/84.03", SKETCH),
            _row("TAPS", "96.68/76.94/80.74/89.76/82.65", SKETCH, 4.12),
        ),
    ),
    "domainnet": Protocol(
        title="DomainNet, ResNet-34",
        model="resnet34",
        tested_on="test",
        tasks=(
            Dataset("clipart", 345, 33525, 14604),
            Dataset("infograph", 345, 36023, 15582),
            Dataset("painting", 345, 50416, 21850),
            Dataset("quickdraw", 345, 120750, 51750),
            Dataset("real", 345, 120906, 52041),
            Dataset("sketch", 345, 48212, 20916),
        ),
        published=(
            _row("fine-tuning", "66.93", ("mean",), 6.0),
            _row("head only", "54.69", ("mean",), 1.0),
            _row("head and norms", "62.00", ("mean",)),
            _row("TAPS", "66.51", ("mean",), 4.90),
        ),
    ),
    "decathlon": Protocol(
        title="Visual Decathlon",
        model="resnet26",
        tested_on="val",
        tasks=(
            Dataset("aircraft", 100, 3334, 3333),
            Dataset("cifar100", 100, 40000, 10000),
            Dataset("daimlerpedcls", 2, 23520, 5880),
            Dataset("dtd", 47, 1880, 1880),
            Dataset("gtsrb", 43, 31367, 7842),
            Dataset("omniglot", 1623, 17853, 6492),
            Dataset("svhn", 10, 47217, 26040),
            Dataset("ucf101", 101, 7585, 1952),
            Dataset("vgg-flowers", 102, 1020, 1020),
        ),
        published=(_row("TAPS", "78.7", ("mean",)),),
        remark="The labels of the test images are the challenge's own: accuracies here are on its validation images. "
        "The paper's ResNet-26 is a wide one of its own; timm's stands in for it. The paper's mean has ImageNet in it.",
    ),
}
