"""Disks that refuse, folders that vanish, what a kill leaves behind: one line, and nothing left over."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from taps_registry import Registry
from taps_registry.cli.main import _run, main
from taps_registry.cli.session import Session
from taps_registry.registry.errors import Interrupted, StorageError, TapsError
from taps_registry.registry.folders import is_alive
from taps_registry.registry.home import Home
from taps_registry.registry.locks import locked
from taps_registry.registry.records import Task
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]


class After(Progress):
    """Does something after the first epoch."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def epoch(self, result: EpochResult) -> None:
        if result.epoch == 1:
            self.action()


def stop() -> None:
    raise KeyboardInterrupt


def test_drafts_of_safetensors_go_with_a_run_that_is_resumed_finished_or_collected(
    registry: Registry, add: Add
) -> None:
    with pytest.raises(Interrupted):
        add("one", epochs=2, progress=After(stop))
    folder = registry.home / "runs" / registry.runs("one")[0].id
    for name in (".tmpAbC123", ".best-0001.safetensors.0123456789ab.part"):
        (folder / name).write_bytes(b"draft")
    registry.resume_task("one")
    assert {path.name for path in folder.iterdir()} == {"lock", "history.json"}
    (folder / ".tmpAbC123").write_bytes(b"draft")
    (registry.home / "objects" / "ab").mkdir(exist_ok=True)
    (registry.home / "objects" / "ab" / ".tmpAbC123").write_bytes(b"draft")
    assert set(registry.gc().removed) == {f"runs/{folder.name}/.tmpAbC123", "objects/ab/.tmpAbC123"}
    assert {path.name for path in folder.iterdir()} == {"lock", "history.json"}


KILLED = """
import os, sys, threading, time
from pathlib import Path
import torch
from taps_registry.registry.folders import held
from taps_registry.registry.home import Home
from taps_registry.registry.store.tensors import write_tensors
with held(Home(Path(sys.argv[1])), "killed") as folder:
    def watch():
        while not any(path.name.startswith(".tmp") for path in folder.iterdir()):
            time.sleep(0.0001)
        os.kill(os.getpid(), 9)
    threading.Thread(target=watch, daemon=True).start()
    while True:
        write_tensors(folder / "best.safetensors", {"x": torch.zeros(20_000_000)})
"""


def test_what_a_kill_in_the_middle_of_a_file_leaves_is_collected(registry: Registry) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(registry.home)], capture_output=True)
    assert done.returncode == -9, done.stderr
    folder = registry.home / "runs" / "killed"
    assert any(path.name.startswith(".tmp") for path in folder.iterdir())
    assert registry.gc().removed == ("runs/killed",)
    assert not folder.exists()


def test_a_registry_that_vanishes_during_training_is_one_line(registry: Registry, add: Add) -> None:
    with pytest.raises(TapsError) as caught:
        add("one", epochs=3, progress=After(lambda: shutil.rmtree(registry.home)))
    assert "\n" not in str(caught.value)
    assert not (registry.home / "objects").exists()


COMMANDS = (
    *(
        "bases",
        "tasks",
        "show one",
        "cost",
        "budget show",
        "budget set --max-bytes 1GB",
        "runs",
        "report --output -",
        "verify",
    ),
    *("verify --deep", "gc", "gc --dry-run", "predict one {image}", "evaluate one --data {images} --split all"),
    *("export one {out}/one.safetensors", "recode one --encoding bf16", "remove one", "init", "upgrade"),
    "add-base other --model test_resnet --random-init --input-size 32",
    "add-task two --base base --data {images} --epochs 1 --tracker none --workers 0 --device cpu",
)


def spoil_objects(home: Path) -> None:
    """A file stands where the folder of objects was."""
    shutil.rmtree(home / "objects")
    (home / "objects").write_bytes(b"")


def spoil_runs(home: Path) -> None:
    shutil.rmtree(home / "runs")
    (home / "runs").write_bytes(b"")


def spoil_file(path: Path) -> None:
    """A folder stands where the file was."""
    path.unlink(missing_ok=True)
    path.mkdir()


SPOILED: dict[str, Callable[[Path], object]] = {
    "objects are no folder": spoil_objects,
    "runs are no folder": spoil_runs,
    "runs are gone": lambda home: shutil.rmtree(home / "runs"),
    "objects are gone": lambda home: shutil.rmtree(home / "objects"),
    "the lock is a folder": lambda home: spoil_file(home / "lock"),
    "the identity is a folder": lambda home: spoil_file(home / "registry.json"),
    "the catalog is a folder": lambda home: spoil_file(home / "catalog.sqlite"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_every_command_says_in_one_line_that(
    registry: Registry, add: Add, images: Path, tmp_path: Path, what: str
) -> None:
    add("one")
    registry.close()
    wanted = {"image": next(images.rglob("*.png")), "images": images, "out": tmp_path}
    failed = 0
    for command in COMMANDS:
        home = Path(shutil.copytree(registry.home, tmp_path / "spoiled"))
        SPOILED[what](home)
        done = CliRunner().invoke(main, ["--home", str(home), *command.format(**wanted).split()])
        shutil.rmtree(home)
        assert done.exception is None or isinstance(done.exception, TapsError | SystemExit), (command, done.exception)
        assert "\n" not in str(done.exception), command
        failed += done.exception is not None
    assert failed


def test_a_lock_does_not_make_the_folder_of_a_registry_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the folder .*gone does not exist"), Home(tmp_path / "gone").lock():
        pass
    assert not (tmp_path / "gone").exists()
    assert not is_alive(Home(tmp_path / "gone"), "run")


def test_a_lock_that_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StorageError, match=f"Cannot lock {tmp_path / 'lock'}: "), locked(tmp_path / "lock", 1, "busy"):
        pass


LIMITED = """
import resource, sys
from taps_registry.cli.main import run
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # no file may become longer
run(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ["add-base more --model test_resnet --random-init --seed 3", "ADD-TASK"])
def test_a_disk_that_is_full_is_one_line(registry: Registry, images: Path, command: str) -> None:
    task = f"add-task one --base base --data {images} --epochs 1 --tracker none --workers 0 --method full"
    command = command.replace("ADD-TASK", task)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "--home", str(registry.home), *command.split()], capture_output=True, text=True
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error: Cannot write" in done.stderr.splitlines()[-1]
    assert registry.verify(deep=True) == ()


def test_an_error_of_the_system_that_nobody_expected_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(["--home", f"{tmp_path}/{'x' * 5000}", "tasks"], Session())
    assert code == StorageError.exit_code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
