"""Architectures: every model of timm taken apart, and the stages, blocks and fused layers of those with a plugin."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.layers import (
    CondConv2d,
    EvoNorm2dB0,
    EvoNorm2dS0,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    RmsNorm,
    RmsNorm2d,
    SimpleNorm,
    SimpleNorm2d,
)
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from taps_registry.plugins import Generic, Layer, Partition, PartitionError
from taps_registry.plugins.architectures.pieces import Pieces, tensor_of
from taps_registry.plugins.architectures.vit import VisionTransformer
from taps_registry.plugins.manager import PluginManager

CLASSES = 1013  # a prime that is the length of nothing else in any model
COMPUTES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention, CondConv2d)
NORMALISES = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *(RmsNorm, RmsNorm2d, SimpleNorm, SimpleNorm2d, GlobalResponseNorm),
    *(EvoNorm2dB0, EvoNorm2dS0, FilterResponseNormAct2d, FilterResponseNormTlu2d),
)


class Uninitialised(TorchFunctionMode):
    """Passes over what fills tensors in place, which takes most of the time of building a model without memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


FILLS = [(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
RESETS = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def on_meta(name: str, **arguments: Any) -> nn.Module:
    """A model of the right shapes without any memory behind them."""
    with torch.device("meta"), Uninitialised(), pytest.MonkeyPatch.context() as patch:
        for module, function in FILLS:  # half of the time is spent on how a tensor would be filled
            patch.setattr(module, function, lambda tensor, *how, **so: tensor)
        for kind in RESETS:
            patch.setattr(kind, "reset_parameters", lambda module: None)
        return timm.create_model(name, **arguments)


@pytest.fixture(scope="module")
def manager() -> PluginManager:
    return PluginManager()


@pytest.fixture
def without_collections() -> Iterator[None]:
    """A third of the time of building a thousand models goes to looking for cycles among their modules."""
    gc.disable()
    yield
    gc.enable()


def taken_apart(manager: PluginManager, model: nn.Module) -> Partition:
    """By the plugin that is chosen for it, and checked."""
    return manager.partition(manager.architecture_for(model), model)


# Every model


def own(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[str]:
    """Names of the tensors that modules of these classes own themselves."""
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, kinds)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }


def mistakes(model: nn.Module, partition: Partition) -> dict[str, set[str]]:
    """What a partition puts where it does not belong, by an independent reading of the model's modules."""
    tensors = model.state_dict()
    gated = {tensor_of(piece) for piece in partition.layer_tensors()}
    norms, head, shared = set(partition.norm_tensors()), set(partition.head), set(partition.shared)
    layers = [*partition.layers, *partition.norms]
    names = [layer.name for layer in layers]
    computing, normalising = own(model, COMPUTES) - head, own(model, NORMALISES) - head
    return {
        "computes without a gate": computing - gated,
        "normalises and is no norm": normalising - norms,
        "called a weight and shared": {name for name in shared if name.endswith("weight")},
        "a statistic outside the norms": {name for name in tensors if ".running_" in f".{name}"} - norms,
        "head, though no shape of classes": {name for name in head if tensors[name].shape[0] != CLASSES},
        "shape of classes, though no head": {n for n, t in tensors.items() if CLASSES in t.shape} - head,
        "gated without a matrix": {x.name for x in partition.layers if tensors[tensor_of(x.tensors[0])].ndim < 2},
        "of an unknown kind": {layer.name for layer in partition.layers if layer.kind not in ("conv", "linear")},
        "without stage or block": {layer.name for layer in layers if not (layer.stage and layer.block)},
        "named like another": set() if len(set(names)) == len(names) else set(names),
    }


def outline(model: nn.Module, partition: Partition) -> list[tuple[Layer, list[torch.Size]]]:
    """Layers and norms with the shapes of their tensors."""
    tensors = model.state_dict()
    layers = [*partition.layers, *partition.norms]
    return [(layer, [tensors[tensor_of(piece)].shape for piece in layer.tensors]) for layer in layers]


@pytest.mark.parametrize("family", timm.list_modules())
def test_every_model_of_timm_is_taken_apart(manager: PluginManager, family: str, without_collections: None) -> None:
    found: dict[str, dict[str, set[str]]] = {}
    smallest: tuple[int, str, list[Any]] | None = None
    for name in timm.list_models(module=family):
        model = on_meta(name, num_classes=CLASSES)
        partition = taken_apart(manager, model)
        wrong = {what: which for what, which in mistakes(model, partition).items() if which}
        if not partition.head and not is_encoder(model):
            wrong["without a head"] = {name}
        if wrong:
            found[name] = wrong
        size = len(partition.tensors())
        if smallest is None or size < smallest[0]:
            smallest = size, name, outline(model, partition)
    assert not found
    if smallest:
        _, name, with_many = smallest
        for arguments in ({}, {"num_classes": 3}):
            model = on_meta(name, **arguments)
            assert outline(model, taken_apart(manager, model)) == with_many


def is_encoder(model: nn.Module) -> bool:
    """Whether the model gives features whatever the number of classes: it has no classifier, by its class's name."""
    return type(model).__name__.endswith("Encoder")


# What a module is


def place(partition: Partition, tensor: str) -> str:
    """``conv``, ``linear``, ``norm``, ``head`` or ``shared``: where a tensor, or the rows of it, ended up."""
    kinds = {tensor_of(piece): layer.kind for layer in (*partition.layers, *partition.norms) for piece in layer.tensors}
    return kinds.get(tensor) or ("head" if tensor in partition.head else "shared")


@pytest.mark.parametrize(
    ("model", "module", "places"),
    [
        ("test_resnet", "Conv2d", {"conv"}),
        ("resnext50_32x4d", "Conv2d", {"conv"}),
        ("tf_efficientnet_b0", "Conv2dSame", {"conv"}),
        ("resnetv2_50x1_bit", "StdConv2d", {"conv"}),
        ("test_nfnet", "ScaledStdConv2d", {"conv"}),
        ("dm_nfnet_f0", "ScaledStdConv2dSame", {"conv"}),
        ("efficientnet_cc_b0_4e", "CondConv2d", {"conv"}),
        ("eca_resnet33ts", "Conv1d", {"conv"}),
        ("lambda_resnet26t", "Conv3d", {"conv"}),
        ("lowformer_b0", "ConvTranspose2d", {"conv"}),
        ("test_mambaout", "Linear", {"linear", "head"}),
        ("sequencer2d_s", "LSTM", {"linear"}),
        ("swiftformer_xs", "EfficientAdditiveAttention", {"linear"}),
        ("test_resnet", "BatchNorm2d", {"norm"}),
        ("test_efficientnet", "BatchNormAct2d", {"norm"}),
        ("levit_128s", "BatchNorm1d", {"norm"}),
        ("test_efficientnet_gn", "GroupNormAct", {"norm"}),
        ("resnet50_gn", "GroupNorm", {"norm"}),
        ("poolformerv2_s12", "GroupNorm1NoBias", {"norm"}),
        ("test_vit", "LayerNorm", {"norm"}),
        ("test_convnext", "LayerNorm2d", {"norm"}),
        ("test_efficientnet_ln", "LayerNormAct2d", {"norm"}),
        ("caformer_s18", "LayerNorm2dNoBias", {"norm"}),
        ("aimv2_large_patch14_224", "RmsNorm", {"norm"}),
        ("convnext_atto_rms", "RmsNorm2d", {"norm"}),
        ("convnext_zepto_rms", "SimpleNorm2d", {"norm"}),
        ("convnextv2_atto", "GlobalResponseNorm", {"norm"}),
        ("test_efficientnet_evos", "EvoNorm2dS0", {"norm"}),
        ("regnetz_b16_evos", "EvoNorm2dS0a", {"norm"}),
        ("resnetv2_50d_frn", "FilterResponseNormTlu2d", {"norm"}),
        ("resmlp_12_224", "Affine", {"norm"}),
        ("hgnetv2_b0", "LearnableAffineBlock", {"shared"}),
        ("nf_resnet26", "NormFreeBlock", set()),
        ("dm_nfnet_f0", "NormFreeBlock", {"shared"}),
        ("cait_xxs24_224", "LayerScaleBlock", {"shared"}),
        ("caformer_s18", "Scale", {"shared"}),
        ("convit_tiny", "GPSA", {"shared"}),
        ("swinv2_tiny_window8_256", "WindowAttention", {"shared"}),
        ("coatnet_0_224", "RelPosBias", {"shared"}),
        ("vit_base_patch16_siglip_224", "AttentionPoolLatent", {"shared"}),
        ("test_vit2", "VisionTransformer", {"shared"}),
    ],
)
def test_tensors_are_placed_by_the_class_of_the_module_that_owns_them(
    manager: PluginManager, model: str, module: str, places: set[str]
) -> None:
    built = on_meta(model, num_classes=3)
    partition = taken_apart(manager, built)
    tensors = own(built, tuple({type(m) for m in built.modules() if type(m).__name__ == module}))
    assert {place(partition, name) for name in tensors} == places


class Stranger(nn.Module):
    """Modules as they are found outside timm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm((8, 4, 4))
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.bare_norm = nn.LayerNorm(8, elementwise_affine=False)
        self.fleeting_norm = FleetingNorm()
        self.normed_linear = NormedLinear(8, 8)
        self.blur = Blur()
        self.prelu = nn.PReLU(8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.normed_linear.weight
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.fc = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))

    def get_classifier(self) -> nn.Module:
        return self.fc


class NormedLinear(nn.Linear):
    """A linear whose class is named for its unit rows."""


class FleetingNorm(nn.Module):
    """A norm with a statistic that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer("mean", torch.zeros(8), persistent=False)


class Blur(nn.Module):
    """A convolution in one dimension, called neither that nor its weight a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(8, 1, 3))


@pytest.fixture
def strange() -> dict[str, str]:
    """Where the generic plugin puts each tensor of a stranger's model."""
    model = Stranger()
    partition = Generic().partition(model).check(model)
    return {name: place(partition, name) for name in model.state_dict()}


def test_the_matrix_of_an_attention_of_torch_is_gated_under_its_own_name(strange: dict[str, str]) -> None:
    assert strange["attention.in_proj_weight"] == strange["attention.in_proj_bias"] == "linear"
    assert strange["attention.out_proj.weight"] == "linear"


def test_norms_are_norms_whatever_the_shape_of_their_weights(strange: dict[str, str]) -> None:
    assert {where for name, where in strange.items() if name.partition(".")[0].endswith("norm")} == {"norm"}
    assert strange["plain_norm.running_var"] == "norm"


def test_a_norm_without_tensors_is_none() -> None:
    norms = {norm.name for norm in Generic().partition(Stranger()).norms}
    assert norms == {"norm", "plain_norm", "fleeting_norm", "fc.1"}


def test_a_linear_that_is_named_for_a_norm_is_a_linear(strange: dict[str, str]) -> None:
    assert strange["normed_linear.weight"] == "linear"


def test_a_kernel_is_that_of_a_convolution_whatever_the_class_is_called(strange: dict[str, str]) -> None:
    assert strange["blur.kernel"] == "conv"


def test_tables_tokens_and_slopes_are_shared(strange: dict[str, str]) -> None:
    assert {strange[name] for name in ("table.weight", "token", "prelu.weight")} == {"shared"}


def test_the_classifier_of_a_model_without_configuration_is_what_it_says_without_norms(strange: dict[str, str]) -> None:
    head = {name for name, where in strange.items() if where == "head"}
    assert head == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
    assert strange["fc.1.running_mean"] == "norm"


def test_a_tensor_in_two_places_belongs_to_the_layer_that_has_it_first() -> None:
    model = Stranger()
    partition = Generic().partition(model).check(model)
    layers = {layer.name: layer.tensors for layer in partition.layers}
    assert layers["normed_linear"] == ("normed_linear.weight", "normed_linear.bias")
    assert "tied" not in layers
    assert partition.aliases == ("tied.weight",)
    assert "tied.bias" in partition.shared


def test_a_classifier_in_two_places_is_in_the_head_once() -> None:
    model = nn.Module()
    model.first = model.second = nn.Linear(8, 3)
    model.pretrained_cfg = {"classifier": ("first", "second")}
    partition = Generic().partition(model).check(model)
    assert partition.head == ("first.weight", "first.bias")
    assert partition.aliases == ("second.weight", "second.bias")


def test_a_module_in_several_places_is_one_layer_under_its_first_name(manager: PluginManager) -> None:
    partition = taken_apart(manager, on_meta("coat_lite_tiny"))
    layers = {layer.name: layer.tensors for layer in partition.layers}
    again = [f"serial_blocks1.{index}.cpe.proj" for index in (0, 1)]
    assert layers["cpe1.proj"] == ("cpe1.proj.weight", "cpe1.proj.bias")
    assert {f"{path}.{name}" for path in again for name in ("weight", "bias")} <= set(partition.aliases)
    assert again[0] not in layers


@pytest.mark.parametrize(
    ("model", "head"),
    [
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("levit_384_s8", {"head.linear", "head_dist.linear"}),  # its configuration forgets the second
        ("volo_d1_224", {"head", "aux_head"}),
        ("resnet50_clip", {"head.proj"}),
        ("vit_base_patch16_siglip_224", {"head"}),  # has none unless it is asked for
        ("caformer_s18", {"head.fc.fc2"}),
        ("efficientvim_m1_dist", {f"heads{kind}.{index}" for kind in ("", "_dist") for index in range(4)}),
    ],
)
def test_all_classifiers_of_a_model_are_its_head(manager: PluginManager, model: str, head: set[str]) -> None:
    found = taken_apart(manager, on_meta(model, num_classes=3)).head
    assert {name.rpartition(".")[0] for name in found} >= head
    assert {name for name in found if not name.startswith(tuple(f"{path}." for path in head))} == set()


def test_a_model_that_has_no_classifier_by_default_has_the_same_layers_with_one(manager: PluginManager) -> None:
    without, with_one = (on_meta("vit_base_patch16_siglip_224", **more) for more in ({}, {"num_classes": 3}))
    assert taken_apart(manager, without).head == ()
    assert outline(without, taken_apart(manager, without)) == outline(with_one, taken_apart(manager, with_one))


# Stages and blocks


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (
            "resnet18",
            {
                "conv1": ("stem", "stem"),
                "layer1.0.conv1": ("layer1", "layer1.0"),
                "layer2.0.downsample.0": ("layer2", "layer2.0"),
                "layer2.0.downsample.1": ("layer2", "layer2.0"),
                "layer4.1.bn2": ("layer4", "layer4.1"),
            },
        ),
        ("resnet50d", {"conv1.0": ("stem", "stem"), "layer1.0.downsample.1": ("layer1", "layer1.0")}),
        (
            "resnetv2_50",
            {
                "stem.conv": ("stem", "stem"),
                "stages.0.blocks.1.conv1": ("stages.0", "stages.0.blocks.1"),
                "stages.0.blocks.0.downsample.conv": ("stages.0", "stages.0.blocks.0"),
                "norm": ("norm", "norm"),
            },
        ),
        (
            "densenet121",
            {
                "features.conv0": ("stem", "stem"),
                "features.denseblock1.denselayer2.conv1": ("denseblock1", "features.denseblock1.denselayer2"),
                "features.transition1.conv": ("denseblock1", "features.transition1"),
                "features.norm5": ("final", "final"),
            },
        ),
        (
            "vit_base_patch16_clip_224",
            {
                "patch_embed.proj": ("embed", "embed"),
                "norm_pre": ("embed", "embed"),
                "blocks.10.attn.qkv.q": ("blocks.10", "blocks.10"),
                "blocks.0.mlp.fc1": ("blocks.0", "blocks.0"),
                "norm": ("final", "final"),
            },
        ),
        (
            "vit_base_patch16_siglip_224",
            {"attn_pool.kv": ("head", "head"), "norm": ("final", "final"), "attn_pool.norm": ("head", "head")},
        ),
        ("vit_small_patch16_18x2_224", {"blocks.3.attns.1.attn.proj": ("blocks.3", "blocks.3")}),
        (
            "convnext_atto",
            {
                "stem.0": ("stem", "stem"),
                "stages.0.blocks.1.mlp.fc1": ("stages", "stages.0.blocks.1"),
                "stages.1.downsample.1": ("stages", "stages.1"),
                "head.norm": ("head", "head"),
            },
        ),
        ("mobilenetv3_small_050", {"blocks.1.0.conv_pw": ("blocks", "blocks.1.0"), "conv_stem": 2 * ("conv_stem",)}),
    ],
)
def test_a_layer_knows_its_stage_and_its_block(
    manager: PluginManager, model: str, blocks: dict[str, tuple[str, str]]
) -> None:
    found = taken_apart(manager, on_meta(model))
    layers = {layer.name: (layer.stage, layer.block) for layer in (*found.layers, *found.norms)}
    assert {name: layers[name] for name in blocks} == blocks


SMALL_VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
CHAINS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "resnet18": {},
    "resnet50d": {"layers": (1, 2, 1, 1)},
    "resnext50_32x4d": {"layers": (1, 1, 1, 1)},
    "seresnet18": {},
    "wide_resnet50_2": {"layers": (1, 1, 1, 1)},
    "resnetblur18": {},
    "resnetrs50": {"layers": (1, 1, 1, 1)},
    "resnetv2_50": {"layers": (1, 2, 1, 1)},
    "resnetv2_50x1_bit": {},
    "resnetv2_50d_gn": {"layers": (1, 1, 1, 1)},
    "densenet121": {"growth_rate": 8, "block_config": (2, 3, 2, 2)},
    "densenetblur121d": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "test_vit": {"img_size": 32},
    "test_vit2": {"img_size": 32},
    "test_vit3": {"img_size": 32},
    "test_vit4": {"img_size": 32},
    "vit_base_patch16_clip_224": SMALL_VIT,
    "vit_base_patch16_siglip_224": SMALL_VIT,
    "vit_tiny_patch16_224": {**SMALL_VIT, "dynamic_img_size": True},
    "vit_tiny_r_s16_p8_224": {**SMALL_VIT, "img_size": 64},
    "vit_dwee_patch16_reg1_gap_256": SMALL_VIT,
    "deit_tiny_distilled_patch16_224": SMALL_VIT,
    "deit3_small_patch16_224": SMALL_VIT,
    "beit_base_patch16_224": SMALL_VIT,
    "beitv2_base_patch16_224": {
        **SMALL_VIT,
        "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": True,
    },
}


@pytest.fixture
def small(request: pytest.FixtureRequest) -> nn.Module:
    """A model none of whose tensors is as initialised: there, residual branches add nothing and norms do nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(request.param, num_classes=3, **CHAINS[request.param]).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand_like(tensor), alpha=0.1 if "var" in name else 0.03)
    return model


def images(model: nn.Module) -> torch.Tensor:
    """Two images of a size that the model takes, the same each time."""
    pixels = CHAINS[model.pretrained_cfg["architecture"]].get("img_size", 64)
    return torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("small", CHAINS, indirect=True)
@torch.no_grad()
def test_the_stages_one_after_another_are_the_forward_pass_to_the_bit(manager: PluginManager, small: nn.Module) -> None:
    stages = manager.architecture_for(small).stages(small)
    given = images(small)
    expected = small(given)
    assert expected.shape == (2, 3)
    assert not torch.equal(expected[0], expected[1])
    for stage in stages:
        before = given.clone()
        result = stage.run(given)
        assert torch.equal(given, before), f"{stage.name} changes what it is given"
        given = result
    assert torch.equal(given, expected)


@pytest.mark.parametrize("small", CHAINS, indirect=True)
@torch.no_grad()
def test_a_stage_runs_the_layers_and_norms_that_name_it_and_no_others(manager: PluginManager, small: nn.Module) -> None:
    architecture = manager.architecture_for(small)
    stages = architecture.stages(small)
    partition = manager.partition(architecture, small)
    wanted: dict[str, set[str]] = {stage.name: set() for stage in stages}
    for layer in (*partition.layers, *partition.norms):
        wanted[layer.stage].update(map(tensor_of, layer.tensors))
    assert [stage.name for stage in stages][-1] == "head"
    wanted["head"].update(partition.head)
    assert all(wanted.values())
    given = images(small)
    for stage in stages:
        with Watch(small) as watch:
            given = stage.run(given)
        assert watch.used - set(partition.shared) == {name for name in wanted[stage.name] if is_used(name)}


def is_used(tensor: str) -> bool:
    """Whether a tensor takes part in a forward pass; counters of batches do not."""
    return not tensor.endswith("num_batches_tracked")


class Watch(TorchFunctionMode):
    """Notes which of a model's tensors take part in what is computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        self.used: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.used.update(self.names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.names)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "small", [name for name in CHAINS if "beit" not in name], indirect=True
)  # BEiT computes with the weights of its ``qkv`` without calling it
@torch.no_grad()
def test_layers_are_in_the_order_of_the_forward_pass(manager: PluginManager, small: nn.Module) -> None:
    called: dict[str, None] = {}
    for path, module in small.named_modules():
        module.register_forward_pre_hook(lambda module, given, path=path: called.setdefault(path))
    small(images(small))
    partition = taken_apart(manager, small)
    for layers in (partition.layers, partition.norms):
        modules = list(
            dict.fromkeys(layer.name.partition(".qkv.")[0] + ".qkv" * (".qkv." in layer.name) for layer in layers)
        )
        assert modules == [path for path in called if path in set(modules)]


def test_a_class_with_a_forward_pass_of_its_own_has_no_stages(manager: PluginManager) -> None:
    class Doubled(timm.models.resnet.ResNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = 2 * super().forward(images)
            return doubled

    with torch.device("meta"):
        model = Doubled(timm.models.resnet.BasicBlock, (1, 1, 1, 1))
    architecture = manager.architecture_for(model)
    assert architecture.name == "resnet"
    assert architecture.stages(model) == ()


@pytest.mark.parametrize("model", ["test_convnext", "eva02_tiny_patch14_224"])
def test_what_cannot_be_chained_has_no_stages(manager: PluginManager, model: str) -> None:
    built = on_meta(model)
    assert manager.architecture_for(built).stages(built) == ()


# Fused layers


FUSED = {
    "test_vit": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": SMALL_VIT,
    "beit_base_patch16_224": SMALL_VIT,
    "vit_base_patch16_rope_224": SMALL_VIT,
    "vit_base_patch16_dinov3_qkvb": SMALL_VIT,
    "vit_dwee_patch16_reg1_gap_256": {**SMALL_VIT, "num_heads": 2},
}
OUTSIDE = ("beit_base_patch16_224", "vit_base_patch16_dinov3_qkvb")  # q's and v's biases are no part of the linear


@pytest.mark.parametrize("name", FUSED)
def test_queries_keys_and_values_are_three_layers_of_rows(manager: PluginManager, name: str) -> None:
    model = on_meta(name, num_classes=3, **FUSED[name])
    layers = {layer.name: layer for layer in taken_apart(manager, model).layers}
    path = "blocks.1.attn.qkv"
    width = model.get_parameter(f"{path}.weight").shape[1]
    assert path not in layers
    for index, part in enumerate("qkv"):
        which = f"[{index * width}:{(index + 1) * width}]"
        inside = (f"{path}.weight{which}", f"{path}.bias{which}")
        outside = (inside[0], *((f"blocks.1.attn.{part}_bias",) if part != "k" else ()))
        assert layers[f"{path}.{part}"] == Layer(
            f"{path}.{part}", "linear", outside if name in OUTSIDE else inside, "blocks.1", "blocks.1"
        )
        pieces = Pieces(model.state_dict())
        assert [len(pieces[piece]) for piece in layers[f"{path}.{part}"].tensors] in ([width], [width, width])


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_the_rows_of_values_carry_the_tokens_and_the_others_only_weigh_them(manager: PluginManager, name: str) -> None:
    """With no queries, or no keys, all tokens are weighed alike; with no values nothing is left of any."""
    tokens = torch.rand(1, 5, 48, generator=torch.Generator().manual_seed(0))
    spread = {}
    for part in "qkv":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, **({**FUSED[name], "embed_dim": 48, "depth": 1})).eval()
        layers = {layer.name: layer for layer in taken_apart(manager, model).layers}
        attention = model.get_submodule("blocks.0.attn")
        pieces = Pieces(model.state_dict())
        for piece in layers[f"blocks.0.attn.qkv.{part}"].tensors:
            pieces[piece].zero_()
        result = attention(tokens)
        spread[part] = (result - result.mean(1, keepdim=True)).abs().max().item(), result.std().item()
    assert max(spread["q"][0], spread["k"][0], spread["v"][0]) < 1e-6
    assert spread["v"][1] < 1e-3 < min(spread["q"][1], spread["k"][1])


@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224", "csatv2"])
def test_other_linears_of_that_name_stay_whole(manager: PluginManager, name: str) -> None:
    model = on_meta(name)
    layers = {layer.name for layer in taken_apart(manager, model).layers}
    fused = {path for path, module in model.named_modules() if path.endswith(".qkv") and isinstance(module, nn.Linear)}
    assert fused
    assert fused <= layers


@pytest.mark.parametrize(("rows_out", "fused"), [(24, True), (20, False)])
def test_a_linear_with_fewer_keys_than_queries_is_not_cut_into_thirds(rows_out: int, fused: bool) -> None:
    layers = VisionTransformer().layers_of("blocks.0.attn.qkv", nn.Linear(8, rows_out))
    assert [layer.name.removeprefix("blocks.0.attn.qkv") for layer in layers] == ([".q", ".k", ".v"] if fused else [""])


class Thirds(Generic):
    """A stranger's plugin for a model whose ``qkv`` is called otherwise, and which may get it wrong."""

    def __init__(self, change: Callable[[list[Layer]], list[Layer]] = list) -> None:
        self.change = change

    def layers_of(self, path: str, module: nn.Module) -> Iterator[Layer]:
        if path == "in_proj":
            assert isinstance(module, nn.Linear)
            yield from self.change(list(self.fused_thirds(path, module)))
        else:
            yield from super().layers_of(path, module)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(8, 24)
        self.out_proj = nn.Linear(8, 8)


def test_a_strangers_plugin_splits_what_it_knows_to_be_fused() -> None:
    layers = Thirds().partition(Fused()).check(Fused()).layers
    assert [layer.name for layer in layers] == ["in_proj.q", "in_proj.k", "in_proj.v", "out_proj"]
    assert layers[1].tensors == ("in_proj.weight[8:16]", "in_proj.bias[8:16]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layers: layers[:2], r"in no group: in_proj\.bias, in_proj\.weight$"),
        (lambda layers: layers[::2], "in no group: in_proj"),
        (lambda layers: [*layers, layers[0]], r"in more than one group: in_proj\.bias, in_proj\.weight$"),
        (
            lambda layers: [replace(layers[0], tensors=("in_proj.weight[0:9]", "in_proj.bias[0:8]")), *layers[1:]],
            r"in more than one group: in_proj\.weight$",
        ),
        (
            lambda layers: [*layers[:2], replace(layers[2], tensors=("in_proj.weight[16:25]", "in_proj.bias[16:24]"))],
            r"not in the model: in_proj\.weight$",
        ),
    ],
)
def test_a_missing_or_overlapping_third_is_an_error(change: Callable[[list[Layer]], list[Layer]], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        Thirds(change).partition(Fused()).check(Fused())
