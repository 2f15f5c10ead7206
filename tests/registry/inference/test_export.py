"""An exported task is a plain timm checkpoint, or a program of torch: the same logits, bit for bit, without us."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner

from taps_registry import Registry
from taps_registry.cli.main import main
from taps_registry.registry.data.pixels import read_rgb
from taps_registry.registry.data.transforms import evaluation_transform
from taps_registry.registry.errors import NotFoundError, SettingsError, StorageError
from taps_registry.registry.inference.task_model import TaskModel
from taps_registry.registry.records import InputConfig

LOADS = """
import sys, torch
{imports}
noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
for call, out in zip(sys.argv[1::2], sys.argv[2::2]):
    model = eval(call){ready}
    with torch.inference_mode():
        for batch in (4, 1):
            open(f"{{out}}-{{batch}}", "wb").write(model(noise[:batch]).numpy().tobytes())
strangers = ("taps_registry", {strangers})
print(any(name.partition(".")[0] in strangers for name in sys.modules))
"""
WITH_TIMM = LOADS.format(imports="import timm", ready=".eval()", strangers="")
WITH_TORCH = LOADS.format(imports="", ready="", strangers="'timm', 'safetensors'")
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "densenet": ("densenet121", DENSENET),
    "vit": ("test_vit", {"dynamic_img_size": False}),
}
FOLDING: dict[str, dict[str, Any]] = {
    "taps": {},
    "head-only": {},
    "norm-only": {},
    "bitfit": {},
    "full": {},
    "hard-sharing": {"share": "top"},
    "lora": {},
    "rcm": {},
    "parallel-adapter": {"norms": "frozen"},
    "diff-pruning": {"keep": 0.02},
    "piggyback": {"lr": 5e-2},
}
BESIDE = ("vmt-adapter", "vmt-adapter-lite")
TASKS = {
    **{f"vit-{method}": ("vit", {"method": method, **FOLDING[method]}) for method in FOLDING},
    **{f"vit-{method}": ("vit", {"method": method}) for method in BESIDE},
    **{f"resnet-{method}": ("resnet", {"method": method}) for method in ("taps", "rcm")},
    **{f"{backbone}-bf16": (backbone, {"encoding": "bf16"}) for backbone in BACKBONES},
    "densenet-piggyback": ("densenet", {"method": "piggyback", "lr": 5e-2}),
    "densenet-taps": ("densenet", {}),
}
PROGRAMS = ("vit-vmt-adapter", "vit-vmt-adapter-lite", "resnet-rcm")


@dataclass(frozen=True)
class House:
    """A registry with the tasks, and the logits of their models by task and size of batch."""

    registry: Registry
    logits: dict[str, bytes]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[House]:
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with Registry.init(tmp_path_factory.mktemp("export") / "home") as registry:
        for name, (model, arguments) in BACKBONES.items():
            registry.add_base(name, model, random_init=True, input_size=32, arguments=arguments)
        logits = {}
        for task, (base, settings) in TASKS.items():
            registry.add_task(task, base, images, test_data=images, **{**QUICK, **settings})
            model = registry.load(task, device="cpu").model
            with torch.inference_mode():
                logits |= {f"{task}-{size}": model(noise[:size]).numpy().tobytes() for size in (4, 1)}
        yield House(registry, logits)


def answers(program: str, calls: dict[str, str], folder: Path) -> dict[str, bytes]:
    """What the tasks answer in a process that knows nothing of this project."""
    arguments = [text for task, call in calls.items() for text in (call, str(folder / task))]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False", "the project was imported: the test shows nothing"
    return {f"{task}-{size}": (folder / f"{task}-{size}").read_bytes() for task in calls for size in (4, 1)}


def test_timm_loads_an_export_with_the_same_logits_bit_for_bit(house: House, tmp_path: Path) -> None:
    tasks = [task for task in TASKS if "vmt" not in task]
    calls = {task: house.registry.export(task, tmp_path / f"{task}.safetensors") for task in tasks}
    assert all(call.startswith("timm.create_model(") for call in calls.values())
    found = answers(WITH_TIMM, calls, tmp_path)
    assert found == {name: logits for name, logits in house.logits.items() if "vmt" not in name}
    assert len(set(found.values())) == 2 * len(tasks), "tasks that answer alike show nothing"


def test_torch_alone_loads_a_program_with_the_same_logits_bit_for_bit(house: House, tmp_path: Path) -> None:
    """For batches of any size, of methods that fold and of those that do not."""
    calls = {task: house.registry.export(task, tmp_path / f"{task}.pt2") for task in PROGRAMS}
    assert all(call.startswith("torch.export.load(") for call in calls.values())
    found = answers(WITH_TORCH, calls, tmp_path)
    assert found == {name: house.logits[name] for name in found}
    assert len(set(found.values())) == 2 * len(PROGRAMS)


def test_a_program_takes_images_of_the_tasks_own_size(
    registry: Registry, add: Callable[..., object], tmp_path: Path
) -> None:
    add("large", method="norm-only", input_size=64)
    registry.export("large", tmp_path / "large.pt2")
    program = torch.export.load(tmp_path / "large.pt2").module()
    noise = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(program(noise), registry.load("large", device="cpu").model(noise))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("method", BESIDE)
def test_a_checkpoint_of_a_task_that_does_not_fold_is_refused(house: House, tmp_path: Path, method: str) -> None:
    refusal = rf"--method {method} adds modules that timm's test_vit does not have: export to a file ending in \.pt2"
    with pytest.raises(SettingsError, match=refusal) as caught:
        house.registry.export(f"vit-{method}", tmp_path / "out.safetensors")
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_a_task_predicts_and_evaluates_as_its_metrics_say(house: House, images: Path, task: str) -> None:
    """Its test images are all images: what was measured of the stored file is what using the task gives."""
    files = sorted(images.glob("*/*.png"))
    found = house.registry.predict(task, files, top=3, device="cpu")
    right = sum(prediction.label == path.parent.name for prediction, path in zip(found, files, strict=True))
    assert {name for name, _ in found[0].classes} == {"dark", "grey", "light"}
    measured = house.registry.evaluate(task, images, device="cpu")
    metrics = house.registry.task(task).metrics
    assert measured.images == len(files) == 36
    assert measured.accuracy == right / len(files) == metrics["test/accuracy"]
    assert measured.loss == pytest.approx(metrics["test/loss"], rel=1e-6)


def test_classes_that_are_equally_likely_come_in_their_order(images: Path) -> None:
    class Undecided(torch.nn.Linear):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.weight.new_zeros(len(pixels), 50)

    classes = tuple(f"class {number:02}" for number in range(50))
    config = InputConfig((3, 32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0, "center")
    model = TaskModel("task", 1, Undecided(1, 1), classes, config)
    (found,) = model.predict([images / "dark" / "0.png"], top=50)
    assert tuple(name for name, _ in found.classes) == classes


def test_every_task_is_as_the_catalog_says(house: House) -> None:
    assert house.registry.verify(deep=True) == ()


def test_an_export_must_end_in_safetensors_or_pt2(house: House, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must end in \.safetensors or \.pt2"):
        house.registry.export("vit-taps", tmp_path / "out.pth")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt2"])
def test_a_place_that_cannot_be_written_is_named(house: House, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot write"):
        house.registry.export("densenet-taps", tmp_path / "file" / name)


def test_an_unknown_task_is_an_error_and_never_the_bases_answer(registry: Registry, images: Path) -> None:
    uses: tuple[Callable[[], Any], ...] = (
        lambda: registry.load("nobody"),
        lambda: registry.predict("nobody", [images / "dark" / "0.png"]),
        lambda: registry.export("nobody", images / "x.safetensors"),
    )
    for use in uses:
        with pytest.raises(NotFoundError, match="There is no task 'nobody'"):
            use()


# What is around the file


@pytest.mark.parametrize("task", ["resnet-taps", "densenet-taps", "vit-taps"])
def test_timm_prepares_images_for_an_export_as_the_task_does(
    house: House, images: Path, tmp_path: Path, task: str
) -> None:
    model = eval(house.registry.export(task, tmp_path / "out.safetensors"), {"timm": timm})
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = read_rgb(next(images.rglob("*.png")), "picture").resize((50, 40))
    assert torch.equal(transform(picture), evaluation_transform(house.registry.load(task).input)(picture))


def test_an_export_of_another_input_size_is_prepared_so(registry: Registry, images: Path, tmp_path: Path) -> None:
    registry.add_task("large", "base", images, **{**QUICK, "input_size": 48, "method": "head-only"})
    model = eval(registry.export("large", tmp_path / "out.safetensors"), {"timm": timm})
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 48, 48)


@pytest.mark.parametrize("out", ["objects/ab/x.safetensors", "x.pt2", "../home/x.safetensors", "link/x.safetensors"])
def test_nothing_is_written_into_a_registry(registry: Registry, images: Path, tmp_path: Path, out: str) -> None:
    registry.add_task("one", "base", images, **{**QUICK, "method": "head-only"})
    (registry.home / "link").symlink_to(registry.home / "objects")
    before = {path: path.read_bytes() for path in registry.home.rglob("*.safetensors")}
    for write in (
        lambda: registry.export("one", registry.home / out),
        lambda: registry.evaluate("one", images, split="all", predictions=(registry.home / out).with_suffix(".csv")),
        lambda: registry.evaluate("one", images, split="all", confusion=(registry.home / out).with_suffix(".png")),
    ):
        with pytest.raises(SettingsError, match=r"is inside the registry .*/home\. Choose a file outside of it\."):
            write()
    assert {path: path.read_bytes() for path in registry.home.rglob("*.safetensors")} == before


def test_an_object_of_the_store_is_not_exported_onto(registry: Registry, images: Path, tmp_path: Path) -> None:
    registry.add_task("one", "base", images, **{**QUICK, "method": "head-only"})
    target = next((registry.home / "objects").rglob("*.safetensors"))
    (tmp_path / "out.safetensors").symlink_to(target)
    for path in (target, tmp_path / "out.safetensors"):
        with pytest.raises(SettingsError, match="is inside the registry"):
            registry.export("one", path)


def test_a_report_is_not_written_inside_a_registry(registry: Registry) -> None:
    result = CliRunner().invoke(main, ["--home", str(registry.home), "report", "-o", str(registry.home / "x.html")])
    assert isinstance(result.exception, SettingsError)
    assert "is inside the registry" in str(result.exception)
    assert not (registry.home / "x.html").exists()


@pytest.mark.parametrize("name", [b"a\xff.safetensors", b"a\xff.pt2"])
def test_a_name_that_is_not_utf_8_is_refused_in_one_line(house: House, tmp_path: Path, name: bytes) -> None:
    with pytest.raises(SettingsError, match="not UTF-8"):
        house.registry.export("densenet-taps", tmp_path / os.fsdecode(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_umask(house: House, images: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        house.registry.export("densenet-taps", tmp_path / "out.safetensors")
        house.registry.export("densenet-taps", tmp_path / "out.pt2")
        house.registry.evaluate("densenet-taps", images, predictions=tmp_path / "out.csv")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path
    (tmp_path / "out.safetensors").chmod(0o640)
    house.registry.export("densenet-taps", tmp_path / "out.safetensors")
    assert stat.S_IMODE((tmp_path / "out.safetensors").stat().st_mode) == 0o640


def test_what_a_link_leads_to_is_written_and_a_device_is_not_replaced(
    house: House, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "real.csv").touch()
    (tmp_path / "link.csv").symlink_to("real.csv")
    house.registry.evaluate("densenet-taps", images, predictions=tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("image,class")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(StorageError, match=r"pipe\.csv: it is there, and is not a file"):
        house.registry.evaluate("densenet-taps", images, predictions=tmp_path / "pipe.csv")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((StorageError, SettingsError)):
        house.registry.export("densenet-taps", tmp_path / "loop" / "x.safetensors")
