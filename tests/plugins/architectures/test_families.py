"""Families of models, the whole way: base, two tasks, files, models composed anew, and the exported checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from taps_registry import Registry
from taps_registry.plugins.architectures.pieces import Pieces, tensor_of
from taps_registry.registry.store.packed import open_packed

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 12}


@dataclass(frozen=True)
class Family:
    """The smallest model of a timm module that can be had.

    Attributes:
        model: timm's name.
        arguments: that make it smaller.
        pixels: the smallest images that it takes.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = 32


TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}
TINY_SWIN = {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
WIDTHS, DEPTHS = (16, 24, 32, 48), (1, 1, 1, 1)
FAMILIES = {
    "beit": Family("beit_base_patch16_224", TINY_VIT),
    "byobnet": Family("test_byobnet"),
    "cait": Family("cait_xxs24_224", TINY_VIT),
    "coat": Family("coat_lite_tiny", {"embed_dims": WIDTHS, "serial_depths": DEPTHS}),
    "convit": Family("convit_tiny", {**TINY_VIT, "local_up_to_layer": 1}),
    "convnext": Family("test_convnext2"),
    "davit": Family("davit_tiny", {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": (1, 2, 2, 3)}),
    "deit": Family("deit_tiny_distilled_patch16_224", TINY_VIT),
    "densenet": Family("densenet121", {"growth_rate": 8, "block_config": (2, 2)}),
    "edgenext": Family("edgenext_xx_small", {"dims": WIDTHS, "depths": DEPTHS}),
    "efficientformer": Family("efficientformer_l1", {"embed_dims": WIDTHS, "depths": (1, 1, 1, 2)}, 224),
    "efficientnet": Family("test_efficientnet_evos"),
    "efficientvit_mit": Family("efficientvit_b0", {"depths": DEPTHS}),
    "efficientvit_msra": Family(
        "efficientvit_m0", {"embed_dim": (16, 32, 48), "depth": (1, 1, 1), "num_heads": (1, 2, 3)}
    ),
    "eva": Family("eva02_tiny_patch14_224", TINY_VIT, 28),
    "fasternet": Family("fasternet_t0", {"embed_dim": 16, "depths": DEPTHS}),
    "hiera": Family("hiera_tiny_224", {"embed_dim": 24, "stages": DEPTHS}),
    "inception_next": Family("inception_next_atto", {"dims": WIDTHS, "depths": DEPTHS}),
    "levit": Family("levit_128s", {"embed_dim": (48, 64, 96), "num_heads": (3, 4, 6), "depth": (1, 1, 1)}, 224),
    "mambaout": Family("test_mambaout"),
    "maxxvit": Family("test_maxvit"),
    "mobilenetv3": Family("lcnet_035"),
    "mobilevit": Family("mobilevit_xxs"),
    "nfnet": Family("test_nfnet"),
    "pvt_v2": Family("pvt_v2_b0", {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": (1, 1, 2, 2)}),
    "regnet": Family("regnetx_002"),
    "repvit": Family("repvit_m1", {"embed_dim": WIDTHS, "depth": DEPTHS}),
    "resnet": Family("test_resnet"),
    "resnetv2": Family("resnetv2_50", {"layers": DEPTHS, "channels": (32, 48, 64, 96)}),
    "rexnet": Family("rexnet_100", {"width_mult": 0.5, "depth_mult": 0.5}),
    "sequencer": Family("sequencer2d_s", {"embed_dims": WIDTHS, "hidden_sizes": (8, 8, 8, 8), "layers": DEPTHS}),
    "starnet": Family("starnet_s050"),
    "swin_transformer": Family("swin_tiny_patch4_window7_224", TINY_SWIN),
    "swin_transformer_v2": Family("swinv2_tiny_window8_256", TINY_SWIN, 64),
    "swin_transformer_v2_cr": Family("swinv2_cr_tiny_224", TINY_SWIN, 64),
    "tiny_vit": Family("tiny_vit_5m_224", {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": (1, 2, 2, 3)}, 64),
    "tnt": Family("tnt_s_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads_outer": 2}),
    "twins": Family("twins_svt_small", {"embed_dims": (16, 32, 48, 64), "depths": DEPTHS, "num_heads": (1, 2, 3, 4)}),
    "vision_transformer": Family("test_vit2"),
    "vision_transformer_hybrid": Family("vit_tiny_r_s16_p8_224", TINY_VIT, 64),
    "vision_transformer_relpos": Family("test_vit_relpos"),
    "vision_transformer_sam": Family(
        "samvit_base_patch16_224", {**TINY_VIT, "global_attn_indexes": (1,), "window_size": 2}
    ),
    "visformer": Family("visformer_tiny", {"embed_dim": 48, "depth": (1, 1, 1)}),
    "vovnet": Family("ese_vovnet19b_slim_dw"),
    "xcit": Family("xcit_nano_12_p8_224", {"embed_dim": 32, "depth": 2}),
}


def logits(model: torch.nn.Module, pixels: int) -> bytes:
    """Of two images that are the same each time."""
    noise = torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result: bytes = model.eval()(noise).numpy().tobytes()
    return result


def stored(registry: Registry, digest: str) -> Path:
    """Where an object lies in a registry's folder."""
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_base_with_changes(model: torch.nn.Module, base: Path, changes: Path) -> bool:
    """Whether a model holds what the task's file holds, under all names of a tensor, and the base's tensors else."""
    with open_packed(changes) as file:
        changed = {name: file.tensor(name) for name in file.names()}
    tensors = model.state_dict(keep_vars=True)
    touched = {id(tensors[tensor_of(piece)]) for piece in changed}
    untouched = {name: value for name, value in load_file(base).items() if id(tensors[name]) not in touched}
    expected = {**changed, **untouched}
    return all(torch.equal(Pieces(tensors)[piece], value) for piece, value in expected.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_whole_way(tmp_path: Path, images: Path, family: str) -> None:
    made = FAMILIES[family]
    assert made.model in timm.list_models(module=family)
    with Registry.init(tmp_path / "home") as registry:
        base = registry.add_base("base", made.model, random_init=True, arguments=made.arguments, input_size=made.pixels)
        file = stored(registry, registry.add_task("first", "base", images, **QUICK).digest)
        model = registry.load("first", device="cpu").model
        assert is_base_with_changes(model, stored(registry, base.object), file)
        first = logits(model, made.pixels)

        call = registry.export("first", tmp_path / "first.safetensors")
        assert logits(eval(call, {"timm": timm}), made.pixels) == first

        before = sha256(file)
        second = stored(registry, registry.add_task("second", "base", images, method="norm-only", **QUICK).digest)
        assert is_base_with_changes(registry.load("second", device="cpu").model, stored(registry, base.object), second)
        assert sha256(file) == before
        assert logits(registry.load("first", device="cpu").model, made.pixels) == first
        assert registry.verify(deep=True) == ()
