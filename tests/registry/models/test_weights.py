"""Where a base's weights come from: a file, timm's hub cache, a seed. And what is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taps_registry import Registry
from taps_registry.registry.errors import NameTakenError, SettingsError, WeightsError
from taps_registry.registry.models.build import without_drawing
from taps_registry.registry.store.objects import ObjectStore
from taps_registry.registry.store.tensors import digest

MODEL = "test_resnet"
PIXELS = 32


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Tensors of the model that are not those of seed 0."""
    torch.manual_seed(123)
    return {name: tensor.clone() for name, tensor in timm.create_model(MODEL).state_dict().items()}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry whose bases have names of their own in every test."""
    with Registry.init(tmp_path_factory.mktemp("weights") / "home") as made:
        yield made


@pytest.fixture
def refuses(empty: Registry) -> Callable[..., None]:
    """Asserts that a file is refused with this message, and that nothing is left of it."""

    def check(file: Path, match: str) -> None:
        with pytest.raises(WeightsError, match=match):
            empty.add_base("refused", MODEL, weights=file, input_size=PIXELS)
        assert "refused" not in {base.name for base in empty.bases()}

    return check


def stored(registry: Registry, name: str) -> dict[str, Tensor]:
    """The tensors of a base as they are on the disk."""
    return load_file(ObjectStore(registry.home / "objects").get(registry.base(name).object))


# Files


def test_a_base_has_the_tensors_of_its_safetensors_file(
    empty: Registry, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    base = empty.add_base("from-safetensors", MODEL, weights=tmp_path / "w.safetensors", input_size=PIXELS)
    assert base.digest == digest(weights)
    found = stored(empty, "from-safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_the_digest_of_a_base_does_not_depend_on_the_format_of_its_file(
    empty: Registry, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "run.pt")
    digests = {
        empty.add_base(f"same-{file}", MODEL, weights=tmp_path / file, input_size=PIXELS).digest
        for file in ("w.safetensors", "w.pth", "run.pt")
    }
    assert digests == {digest(weights)}


def test_another_weight_makes_another_digest(empty: Registry, weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = next(iter(weights))
    changed = {**weights, name: weights[name] + 1e-3}
    save_file(changed, tmp_path / "w.safetensors")
    base = empty.add_base("other-weights", MODEL, weights=tmp_path / "w.safetensors", input_size=PIXELS)
    assert base.digest == digest(changed) != digest(weights)


def test_two_bases_of_the_same_weights_share_their_file(
    empty: Registry, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    first, second = (
        empty.add_base(name, MODEL, weights=tmp_path / "w.safetensors", input_size=PIXELS) for name in ("one", "two")
    )
    assert first.object == second.object
    digests = [kept.digest for kept in ObjectStore(empty.home / "objects")]
    assert digests.count(first.object) == 1


class Malice:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_code_in_a_pickle_is_not_run(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path, zipped: bool
) -> None:
    """Both of torch's formats: the zip of today and the plain pickle of before."""
    evil = {**weights, "fc.bias": Malice(tmp_path / "ran")}
    torch.save(evil, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    refuses(tmp_path / "evil.pth", "cannot be read as weights: ")
    assert not (tmp_path / "ran").exists()


def test_the_code_in_a_plain_pickle_is_not_run(refuses: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Malice(tmp_path / "ran")))
    refuses(tmp_path / "evil.bin", "cannot be read as weights: ")
    assert not (tmp_path / "ran").exists()


def test_missing_and_unknown_tensors_are_named(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    fewer = {name: tensor for name, tensor in weights.items() if name != "conv1.0.weight" and name != "fc.bias"}
    missing = sorted(set(weights) - set(fewer), key=list(weights).index)
    save_file({**fewer, "extra.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    refuses(
        tmp_path / "w.safetensors",
        rf"does not fit ResNet\. missing: {re.escape(', '.join(missing))}; unknown: extra\.weight\.",
    )


def test_weights_of_another_model_are_refused_in_a_few_words(refuses: Callable[..., None], tmp_path: Path) -> None:
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "w.safetensors")
    refuses(tmp_path / "w.safetensors", r"missing: .* and \d+ more; unknown: .* and \d+ more; .{,300}$")


def test_a_classifier_of_another_size_is_refused_with_the_argument_that_helps(
    empty: Registry, refuses: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model(MODEL, num_classes=7).state_dict(), file)
    refuses(file, r"fc\.weight \(7, \d+\) instead of \(1000, \d+\).*add --model-arg num_classes=7\.")
    base = empty.add_base("seven", MODEL, weights=file, arguments={"num_classes": 7}, input_size=PIXELS)
    assert base.digest == digest(load_file(file))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kept", [0, 100, 20_000])
def test_a_truncated_file_is_refused(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path, name: str, kept: int
) -> None:
    file = tmp_path / name
    save_file(weights, file) if file.suffix == ".safetensors" else torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:kept])
    refuses(file, rf"{name} cannot be read as weights: \S")


@pytest.mark.parametrize("content", [[1, 2], 5, {"epoch": 3}, {"state_dict": None}])
def test_a_pickle_that_holds_no_tensors_is_refused(
    refuses: Callable[..., None], tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "w.pth")
    refuses(tmp_path / "w.pth", "cannot be read as weights|missing: |entries that are not tensors")


def test_a_tensors_name_that_holds_something_else_is_refused(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({**weights, "fc.bias": 5}, tmp_path / "w.pth")
    refuses(tmp_path / "w.pth", r"fc\.bias")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv1.0.weight", "bn1.running_var", "fc.bias"])
def test_weights_that_are_not_finite_are_refused_by_the_names_of_their_tensors(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path, value: float, name: str
) -> None:
    broken = {**weights, name: weights[name].clone()}
    broken[name].view(-1)[0] = value
    save_file(broken, tmp_path / "w.safetensors")
    refuses(
        tmp_path / "w.safetensors", f"not finite in 1 of its tensors: {re.escape(name)} \\(1 of {broken[name].numel()}"
    )
    torch.save(broken, tmp_path / "w.pth")
    refuses(tmp_path / "w.pth", "not finite")


def test_of_many_tensors_that_are_not_finite_a_few_are_named(
    refuses: Callable[..., None], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, tmp_path / "w.safetensors")
    count = sum(tensor.is_floating_point() for tensor in weights.values())
    refuses(tmp_path / "w.safetensors", f"not finite in {count} of its tensors: .* and {count - 4} more. Use")


def test_a_file_that_is_not_there_is_refused(refuses: Callable[..., None], tmp_path: Path) -> None:
    refuses(tmp_path / "none.pth", "There is no file .*none.pth")


def test_a_folder_is_no_file_of_weights(refuses: Callable[..., None], tmp_path: Path) -> None:
    refuses(tmp_path, "There is no file")


# Other sources


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"pretrained": True, "random_init": True},
        {"weights": "w.pth", "random_init": True},
        {"weights": "w.pth", "pretrained": True},
    ],
)
def test_exactly_one_source_must_be_given(empty: Registry, sources: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="one of --weights FILE, --pretrained, --random-init"):
        empty.add_base("no-source", MODEL, **sources)


def test_random_weights_follow_their_seed_and_leave_the_global_one_alone(empty: Registry) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (
        empty.add_base(name, MODEL, random_init=True, input_size=PIXELS, seed=seed).digest
        for name, seed in (("seed-1", 1), ("seed-1-again", 1), ("seed-2", 2))
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_drawing_parameters_stay_as_they_are_and_all_else_that_is_drawn_is_0() -> None:
    state = torch.get_rng_state()
    with without_drawing():
        weight, buffer = torch.nn.Parameter(torch.full((3,), 7.0)), torch.full((3,), 7.0)
        torch.nn.init.normal_(weight)
        buffer.uniform_()
    assert weight.tolist() == [7.0] * 3
    assert buffer.tolist() == [0.0] * 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (MODEL, {}),
        ("test_vit", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}),
        ("eva02_tiny_patch14_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    ],
)
def test_a_model_built_without_drawing_is_the_same_once_its_weights_are_loaded(
    model: str, arguments: dict[str, Any]
) -> None:
    drawn = timm.create_model(model, **arguments)
    before = torch.random.get_rng_state()
    with without_drawing():
        made = timm.create_model(model, **arguments)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not all(torch.equal(a, b) for a, b in zip(drawn.parameters(), made.parameters(), strict=True))
    made.load_state_dict(drawn.state_dict())
    for (name, first), (_, second) in zip(drawn.named_buffers(), made.named_buffers(), strict=True):
        assert torch.equal(first, second), f"{name} is not in the state dict, and must be made all the same"
    pixels = torch.randn(1, 3, *made.default_cfg["input_size"][1:])
    assert torch.equal(drawn.eval()(pixels), made.eval()(pixels))


def test_loading_a_task_draws_no_random_numbers(empty: Registry, images: Path) -> None:
    empty.add_base("drawn", MODEL, random_init=True, input_size=PIXELS)
    empty.add_task("still", "drawn", images, method="head-only", epochs=1, tracker="none", workers=0)
    before = torch.random.get_rng_state()
    empty.load("still", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


CHECK_HUB = """
import json, sys
from taps_registry import Registry, TapsError
with Registry.init(sys.argv[1]) as registry:
    base = registry.add_base("cached", "test_resnet", pretrained=True, input_size=32)
    try:
        registry.add_base("absent", "test_vit", pretrained=True)
    except TapsError as error:
        said = [type(error).__name__, error.exit_code, str(error)]
    print(json.dumps({"digest": base.digest, "said": said, "bases": [known.name for known in registry.bases()]}))
"""


@pytest.fixture(scope="module")
def offline(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without network says, whose hub cache has one model and not the other."""
    root = tmp_path_factory.mktemp("hub")
    where = timm.get_pretrained_cfg(MODEL).hf_hub_id
    repository, commit = root / "hub" / f"models--{where.replace('/', '--')}", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    save_file(weights, repository / "snapshots" / commit / "model.safetensors", {"format": "pt"})
    environment = {**os.environ, "HF_HUB_CACHE": str(root / "hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_HUB, str(root / "home")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_pretrained_weights_come_from_the_hubs_cache(offline: dict[str, Any], weights: dict[str, Tensor]) -> None:
    assert offline["digest"] == digest(weights)


def test_pretrained_weights_that_are_not_finite_are_refused(
    weights: dict[str, Tensor], empty: Registry, tmp_path: Path
) -> None:
    """timm reads the file of ``pretrained_cfg_overlay`` as it reads one of the hub."""
    file = tmp_path / "w.safetensors"
    save_file({**weights, "conv1.0.weight": weights["conv1.0.weight"] * float("nan")}, file)
    with pytest.raises(WeightsError, match=r"not finite in 1 of its tensors: conv1\.0\.weight"):
        empty.add_base("refused", MODEL, pretrained=True, arguments={"pretrained_cfg_overlay": {"file": str(file)}})
    assert "refused" not in {base.name for base in empty.bases()}


def test_pretrained_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(offline: dict[str, Any]) -> None:
    kind, code, text = offline["said"]
    assert (kind, code) == ("WeightsError", 11)
    assert text.startswith("The pretrained weights of test_vit could not be loaded or downloaded: ")
    assert "--weights FILE" in text
    assert "$HF_HOME" in text
    assert "\n" not in text
    assert offline["bases"] == ["cached"]


# Models and their input


def test_an_unknown_model_is_refused_with_those_close_to_it(empty: Registry) -> None:
    with pytest.raises(WeightsError, match=r"no model 'resnet5O'\. Similar names: .*resnet50"):
        empty.add_base("typo", "resnet5O", random_init=True)


@pytest.mark.parametrize("arguments", [{"no_such_argument": 1}, {"global_pool": "nonsense"}, {"num_classes": "ten"}])
def test_arguments_that_the_model_does_not_take_are_refused(empty: Registry, arguments: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=f"cannot build {MODEL} with .*{next(iter(arguments))}"):
        empty.add_base("bad-argument", MODEL, random_init=True, arguments=arguments)


def test_arguments_are_kept_with_the_base(empty: Registry) -> None:
    base = empty.add_base("with-arguments", MODEL, random_init=True, arguments={"num_classes": 3}, input_size=PIXELS)
    assert empty.base("with-arguments").arguments == {"num_classes": 3}
    assert base.params - base.backbone_params == 3 * stored(empty, "with-arguments")["fc.weight"].shape[1] + 3


def test_a_base_without_an_input_size_has_the_models_own(empty: Registry) -> None:
    assert empty.add_base("own-size", MODEL, random_init=True).input.size == (3, 160, 160)


def test_a_transformer_is_built_for_the_input_size_that_was_asked_for(empty: Registry) -> None:
    base = empty.add_base("small-vit", "test_vit", random_init=True, input_size=64)
    assert base.input.size == (3, 64, 64)
    assert base.arguments == {"img_size": 64}
    assert stored(empty, "small-vit")["pos_embed"].shape[1] == 1 + (64 // 16) ** 2


def test_a_network_of_any_size_gets_no_argument_for_it(empty: Registry) -> None:
    base = empty.add_base("small-resnet", MODEL, random_init=True, input_size=64)
    assert base.input.size == (3, 64, 64)
    assert base.arguments == {}


def test_an_input_size_that_the_model_cannot_take_is_refused(empty: Registry) -> None:
    with pytest.raises(SettingsError, match="VisionTransformer does not take images of 8x8 pixels: "):
        empty.add_base("tiny-vit", "test_vit", random_init=True, input_size=8)


def test_the_name_of_a_base_can_be_taken_once(empty: Registry) -> None:
    empty.add_base("mine", MODEL, random_init=True, input_size=PIXELS)
    with pytest.raises(NameTakenError, match="mine"):
        empty.add_base("mine", MODEL, random_init=True, input_size=PIXELS, seed=1)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", ".x", "a b", "ä", "x" * 101])
def test_names_that_would_not_do_in_a_path_are_refused(empty: Registry, name: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid base name"):
        empty.add_base(name, MODEL, random_init=True)
