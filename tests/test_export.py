"""An exported task is a plain timm checkpoint: the same logits, bit for bit, without this project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taps_registry import Registry
from taps_registry.registry.errors import NotFoundError, SettingsError, StorageError

PROGRAM = """
import sys, timm, torch
noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
for call, out in zip(sys.argv[1::2], sys.argv[2::2]):
    model = eval(call).eval()
    with torch.inference_mode():
        open(out, "wb").write(model(noise).numpy().tobytes())
print(any(name.startswith("taps_registry") for name in sys.modules))
"""
DENSENET = {"growth_rate": 8, "block_config": (2, 2)}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("test_resnet", {}),
    "densenet": ("densenet121", DENSENET),
    "vit": ("test_vit", {"dynamic_img_size": False}),
}


def test_timm_loads_an_export_with_the_same_logits_bit_for_bit(tmp_path: Path, images: Path) -> None:
    noise = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected, calls = {}, []
    with Registry.init(tmp_path / "home") as registry:
        for name, (model, arguments) in BACKBONES.items():
            registry.add_base(name, model, random_init=True, input_size=32, arguments=arguments)
            for encoding in ("fp32", "bf16"):
                task = f"{name}-{encoding}"
                registry.add_task(
                    task, name, images, epochs=1, tracker="none", workers=0, batch_size=8, encoding=encoding
                )
                calls += [registry.export(task, tmp_path / f"{task}.safetensors"), str(tmp_path / task)]
                with torch.inference_mode():
                    expected[task] = registry.load(task, device="cpu").model(noise).numpy().tobytes()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *calls], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False", "the project was imported: the test shows nothing"
    assert {task: (tmp_path / task).read_bytes() for task in expected} == expected
    assert len(set(expected.values())) == len(expected)


def test_an_export_must_end_in_safetensors(registry: Registry, add: Callable[..., Any], tmp_path: Path) -> None:
    add("task")
    with pytest.raises(SettingsError, match=r"must end in \.safetensors"):
        registry.export("task", tmp_path / "out.pth")
    assert not list(tmp_path.glob("out*"))


def test_a_place_that_cannot_be_written_is_named(registry: Registry, add: Callable[..., Any], tmp_path: Path) -> None:
    add("task")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot write"):
        registry.export("task", tmp_path / "file" / "out.safetensors")


def test_an_unknown_task_is_an_error_and_never_the_bases_answer(registry: Registry, images: Path) -> None:
    for use in (
        lambda: registry.load("nobody"),
        lambda: registry.predict("nobody", [images / "dark" / "0.png"]),
        lambda: registry.export("nobody", images / "x.safetensors"),
    ):
        with pytest.raises(NotFoundError, match="There is no task 'nobody'"):
            use()
