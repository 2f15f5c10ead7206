"""A registry that cannot be written can be read: another user's, or on a disk that is mounted to be read only."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taps_registry import Registry

QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8, "method": "head-only"}
READING = (
    *("bases", "tasks", "show one", "show base", "cost", "cost --by layer", "budget show", "runs", "plugins"),
    *("verify", "verify --deep", "predict one {image}", "evaluate one --data {images} --split all", "report -o -"),
    *("export one {out}/x.safetensors", "gc --dry-run"),
)
WRITING = ("remove one", "gc", "budget set --max-bytes 1GB", "recode one --encoding bf16", "add-task two --base base ")
# Root may write everywhere: another user's process is one without root's rights.
AS_ANOTHER = """
import os, sys
if os.getuid() == 0:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(41):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capset(header, nothing) == 0
from taps_registry.cli.main import run
run()
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    folder = tmp_path_factory.mktemp("another") / "home"
    with Registry.init(folder) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_task("one", "base", images, **QUICK)
    return folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No right to write for anybody."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, "--home", str(home), *words], capture_output=True, text=True, check=False
    )


@pytest.fixture
def home(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "home")


@pytest.mark.skipif(sys.platform != "linux", reason="rights are dropped as Linux does it")
@pytest.mark.parametrize("line", READING)
def test_a_command_that_reads_needs_no_right_to_write(home: Path, images: Path, tmp_path: Path, line: str) -> None:
    words = line.format(image=images / "dark" / "0.png", images=images, out=tmp_path).split()
    with read_only(home):
        done = command(home, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="rights are dropped as Linux does it")
@pytest.mark.parametrize("line", WRITING)
def test_a_command_that_writes_says_in_one_line_that_it_cannot(home: Path, images: Path, line: str) -> None:
    words = line.split()
    if words[0] == "add-task":
        words += ["--data", str(images), "--epochs", "1", "--tracker", "none"]
    with read_only(home):
        done = command(home, *words)
    assert done.returncode == 13, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="rights are dropped as Linux does it")
def test_a_reader_sees_what_a_writer_is_about_to_leave(home: Path) -> None:
    """The write-ahead log holds the newest rows while somebody has the catalog open."""
    writer = sqlite3.connect(home / "catalog.sqlite")
    try:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE taps_tasks SET name = 'renamed'")
        writer.commit()
        with read_only(home):
            done = command(home, "tasks")
    finally:
        writer.close()
    assert "renamed" in done.stdout, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="rights are dropped as Linux does it")
def test_a_log_that_cannot_be_read_is_not_passed_over(home: Path) -> None:
    writer = sqlite3.connect(home / "catalog.sqlite")
    try:
        writer.execute("UPDATE taps_tasks SET name = 'renamed'")
        writer.commit()
        copy = shutil.copytree(home, home.parent / "copy", ignore=shutil.ignore_patterns("*-shm"))
    finally:
        writer.close()
    with read_only(copy):
        done = command(copy, "tasks")
    assert (done.returncode, done.stdout) == (13, "") or "renamed" in done.stdout


def test_a_root_user_is_no_other_user(home: Path) -> None:
    """The tests above show nothing if the process could write all the same."""
    with read_only(home):
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER.partition("from taps")[0] + f"open({str(home / 'x')!r}, 'w')"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert "PermissionError" in done.stderr
