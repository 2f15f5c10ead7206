"""gc takes what nothing refers to and nothing else; verify finds what is not as it should be, and says whose it is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sqlalchemy import text

from taps_registry import Registry
from taps_registry.registry.errors import BudgetError, IntegrityError, Interrupted, NotFoundError, SettingsError
from taps_registry.registry.folders import held
from taps_registry.registry.records import Collected, Task
from taps_registry.registry.store.files import sha256
from taps_registry.registry.store.packed import open_packed, write_packed
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}


class Impatient(Progress):
    """Presses Ctrl-C after the first epoch."""

    def epoch(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


def files(registry: Registry) -> dict[str, int]:
    """Every file of objects and runs with its size, but for locks."""
    root = registry.home
    found = [path for part in ("objects", "runs") for path in (root / part).rglob("*")]
    return {
        str(path.relative_to(root)): path.stat().st_size for path in found if path.is_file() and path.name != "lock"
    }


def path_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def interrupt(add: Add, name: str) -> None:
    with pytest.raises(Interrupted, match=f"add-task {name} --resume"):
        add(name, epochs=2, progress=Impatient())


def run_of(registry: Registry, task: str) -> str:
    (run,) = registry.runs(task)
    return run.id


# gc


def test_gc_of_a_registry_in_order_removes_nothing(registry: Registry, add: Add) -> None:
    add("one", method="head-only")
    before = files(registry)
    assert registry.gc(dry_run=True) == Collected((), 0, True)
    assert registry.gc() == Collected((), 0, False)
    assert files(registry) == before


def test_a_dry_run_lists_exactly_what_the_real_run_removes(registry: Registry, add: Add) -> None:
    add("kept", method="head-only")
    gone = add("gone", method="norm-only")
    gone_run = run_of(registry, "gone")
    interrupt(add, "waiting")
    waiting_run = run_of(registry, "waiting")
    registry.remove("gone")
    home = registry.home
    orphan = path_of(registry, "ab" * 32)
    draft = path_of(registry, "cd" * 32).with_name(f".{'d' * 62}.safetensors.0123456789ab.part")
    for path in (orphan, draft, home / "runs" / "fff" / "checkpoint.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    weights = home / "runs" / run_of(registry, "kept") / "checkpoint.safetensors"
    weights.write_bytes(b"1234567")
    before = files(registry)

    dry = registry.gc(dry_run=True)
    assert files(registry) == before
    real = registry.gc()
    vanished = {name: size for name, size in before.items() if name not in files(registry)}
    assert (real.removed, real.bytes) == (dry.removed, dry.bytes)
    assert set(real.removed) == {
        f"object {gone.digest}",
        f"object {'ab' * 32}",
        str(draft.relative_to(home)),
        str(weights.relative_to(home)),
        f"runs/{gone_run}",
        "runs/fff",
    }
    listed = {
        str(path_of(registry, name.removeprefix("object ")).relative_to(home)) if name.startswith("object ") else name
        for name in real.removed
    }
    assert {name for name in vanished if not any(name == one or name.startswith(f"{one}/") for one in listed)} == set()
    assert sum(vanished.values()) == real.bytes
    assert not any((home / name).exists() for name in listed)
    assert (home / "runs" / waiting_run).is_dir()
    assert registry.gc() == Collected((), 0, False)
    assert registry.verify(deep=True) == ()


def test_gc_never_removes_what_a_task_or_base_refers_to(registry: Registry, add: Add, images: Path) -> None:
    registry.add_base("unused", "test_resnet", random_init=True, input_size=32, seed=1)
    add("one", method="norm-only")
    before = files(registry)
    measured = registry.evaluate("one", images)
    registry.gc()
    assert files(registry) == before
    assert registry.verify(deep=True) == ()
    assert registry.evaluate("one", images) == measured


def test_gc_keeps_what_a_task_that_was_removed_had_in_common_with_another(registry: Registry, add: Add) -> None:
    one, other = add("one", method="norm-only"), add("other", method="norm-only")
    assert one.digest == other.digest
    registry.remove("one")
    assert f"object {other.digest}" not in registry.gc().removed
    assert registry.verify(deep=True) == ()
    registry.remove("other")
    assert f"object {other.digest}" in registry.gc().removed
    assert not path_of(registry, other.digest).exists()
    assert registry.verify(deep=True) == ()


def test_gc_never_removes_the_folder_of_a_run_that_can_be_resumed(registry: Registry, add: Add) -> None:
    interrupt(add, "stopped")
    registry.set_budget(max_params=5000)
    with pytest.raises(BudgetError):
        add("late")
    before = {name: size for name, size in files(registry).items() if name.startswith("runs/")}
    assert len([name for name in before if name.endswith("checkpoint.safetensors")]) == 2
    registry.gc()
    assert {name: size for name, size in files(registry).items() if name.startswith("runs/")} == before
    registry.clear_budget()
    for name in ("stopped", "late"):
        assert registry.resume_task(name).state == "ready"
    assert registry.verify(deep=True) == ()


def test_gc_leaves_a_run_alone_that_a_process_is_training(registry: Registry) -> None:
    """Its folder is there before its row is."""
    with held(registry._context.home, "0123") as folder:
        assert registry.gc() == Collected((), 0, False)
        assert folder.is_dir()
    assert registry.gc().removed == ("runs/0123",)
    assert not folder.exists()


def test_a_name_given_up_frees_its_run(registry: Registry, add: Add) -> None:
    interrupt(add, "stopped")
    run = run_of(registry, "stopped")
    registry.remove("stopped")
    found = registry.gc()
    assert found.removed == (f"runs/{run}",)
    assert found.bytes > 0
    assert list((registry.home / "runs").iterdir()) == []


CRASH = """
import os, signal, sys
from itertools import count
real, calls, last = os.fsync, count(1), int(sys.argv[2])
def fsync(handle):
    if next(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    real(handle)
os.fsync = fsync
from taps_registry import Registry
with Registry.open(sys.argv[1]) as registry:
    registry.add_base("second", "test_resnet", random_init=True, input_size=32, seed=7)
"""


def test_gc_removes_all_that_a_process_left_that_was_killed_while_it_added_a_base(registry: Registry) -> None:
    """At the third flush: the base has been written beside the store, and half of the way into it."""
    before = {path for path in registry.home.rglob("*") if "catalog" not in path.name}
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CRASH, str(registry.home), "3"], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = {path for path in registry.home.rglob("*") if "catalog" not in path.name and path.is_file()} - before
    assert len(left) >= 2
    found = registry.gc()
    assert found.bytes > 0
    assert [str(path.relative_to(registry.home)) for path in left if path.exists()] == []
    assert [base.name for base in registry.bases()] == ["base"]
    assert registry.verify(deep=True) == ()


def test_gc_removes_the_drafts_of_a_crash_in_a_run_that_was_resumed_and_finished(registry: Registry, add: Add) -> None:
    interrupt(add, "one")
    draft = registry.home / "runs" / run_of(registry, "one") / ".checkpoint.safetensors.0123456789ab.part"
    draft.write_bytes(b"half a checkpoint")
    registry.resume_task("one")
    registry.gc()
    assert not draft.exists()


# verify


@pytest.fixture(scope="module")
def home_with_tasks(home_with_base: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``registry`` is a copy of where a test asks for ``task``."""
    home = shutil.copytree(home_with_base, tmp_path_factory.mktemp("tasks") / "home")
    with Registry.open(home) as made:
        made.add_task("bystander", "base", images, **QUICK, method="head-only")
        made.add_task("victim", "base", images, **QUICK, method="norm-only")
    return home


@pytest.fixture
def registry(request: pytest.FixtureRequest, home_with_base: Path, tmp_path: Path) -> Iterator[Registry]:
    wanted = request.getfixturevalue("home_with_tasks") if "task" in request.fixturenames else home_with_base
    with Registry.open(shutil.copytree(wanted, tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def task(registry: Registry) -> Task:
    """The one that things happen to, beside one that nothing happens to."""
    return registry.task("victim")


def said(registry: Registry, *, deep: bool) -> str:
    problems = registry.verify(deep=deep)
    assert "bystander" not in repr(problems)
    return "\n".join(f"{problem.subject}: {problem.what}" for problem in problems)


@pytest.mark.parametrize("deep", [False, True])
def test_verify_of_a_healthy_registry_finds_nothing(registry: Registry, add: Add, task: Task, deep: bool) -> None:
    interrupt(add, "waiting")
    add("half", encoding="bf16")
    assert registry.verify(deep=deep) == ()


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_an_object_that_is_missing_and_names_the_task(registry: Registry, task: Task, deep: bool) -> None:
    path_of(registry, task.digest).unlink()
    found = said(registry, deep=deep)
    assert f"object {task.digest}: is missing" in found
    assert "victim" in found


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_an_object_that_was_cut_short_and_names_the_task(
    registry: Registry, task: Task, deep: bool
) -> None:
    path = path_of(registry, task.digest)
    path.write_bytes(path.read_bytes()[:-1])
    found = said(registry, deep=deep)
    assert f"object {task.digest}: has {task.bytes - 1} bytes instead of {task.bytes}" in found
    assert "victim" in found


@pytest.mark.parametrize("where", ["first", "header", "middle", "last"])
def test_a_deep_verify_finds_a_byte_that_changed_and_names_the_task(registry: Registry, task: Task, where: str) -> None:
    path = path_of(registry, task.digest)
    content = bytearray(path.read_bytes())
    content[{"first": 0, "header": 50, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(content)
    problems = registry.verify(deep=True)
    assert "task victim" in {problem.subject for problem in problems}
    assert f"object {task.digest}: is damaged: its SHA-256 is {sha256(path)}" in said(registry, deep=True)
    with pytest.raises(IntegrityError, match="is damaged"):
        registry.load("victim")
    registry.load("bystander")


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_an_artifact_of_another_base_and_names_the_task(
    registry: Registry, task: Task, tmp_path: Path, deep: bool
) -> None:
    """An artifact in good order that the catalog has under the wrong base."""
    with open_packed(path_of(registry, task.digest)) as file:
        header = file.text.replace(registry.base("base").digest, "ab" * 32)
        tensors = {name: file.tensor(name) for name in file.names()}
    write_packed(tmp_path / "other", tensors, header)
    stored = registry._context.store.put(tmp_path / "other")
    content = (tmp_path / "other").read_bytes()
    with registry._context.catalog.write() as session:
        session.execute(
            text("INSERT INTO taps_objects VALUES (:digest, :checksum, :size, 'artifact', '2026-01-01')"),
            {"digest": stored.digest, "checksum": blake3(content).hexdigest(), "size": stored.size},
        )
        session.execute(
            text("UPDATE taps_artifacts SET digest = :new WHERE digest = :old"),
            {"new": stored.digest, "old": task.digest},
        )
    problems = registry.verify(deep=deep)
    assert {problem.subject for problem in problems} == {"task victim"}
    assert all(f"belongs to the base with digest {'ab' * 32}" in problem.what for problem in problems)


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_a_base_that_is_missing_and_names_it(registry: Registry, task: Task, deep: bool) -> None:
    path_of(registry, registry.base("base").object).unlink()
    found = "\n".join(f"{problem.subject}: {problem.what}" for problem in registry.verify(deep=deep))
    assert f"object {registry.base('base').object}: is missing" in found
    assert "base base" in found


def test_a_deep_verify_finds_a_base_whose_bytes_changed(registry: Registry, task: Task) -> None:
    path = path_of(registry, registry.base("base").object)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert registry.verify() == ()
    itself, used = registry.verify(deep=True)
    assert (itself.subject, used.subject) == (f"object {registry.base('base').object}", "base base")
    assert all("is damaged" in problem.what for problem in (itself, used))


def test_a_deep_verify_finds_damage_in_an_earlier_version_that_is_still_there(registry: Registry, task: Task) -> None:
    registry.recode("victim", "bf16")
    path = path_of(registry, task.digest)
    path.write_bytes(bytes(task.bytes))
    assert registry.verify() == ()
    itself, used = registry.verify(deep=True)
    assert (itself.subject, used.subject) == (f"object {task.digest}", "task victim")
    assert itself.what in used.what
    assert "of an earlier version" in used.what
    registry.gc()
    assert registry.verify(deep=True) == ()


def set_checksum(registry: Registry, digest: str, checksum: str) -> None:
    with registry._context.catalog.write() as session:
        session.execute(
            text("UPDATE taps_objects SET checksum = :checksum WHERE digest = :digest"),
            {"checksum": checksum, "digest": digest},
        )


def test_a_deep_verify_finds_a_checksum_that_is_not_of_the_bytes(registry: Registry, task: Task) -> None:
    """The task is good, and is loaded."""
    set_checksum(registry, task.digest, "0" * 64)
    assert registry.verify() == ()
    (problem,) = registry.verify(deep=True)
    assert problem.subject == f"object {task.digest}"
    assert "its BLAKE3 differs from the catalog" in problem.what
    registry.load("victim")


@pytest.mark.parametrize("what", ["base", "task"])
def test_a_deep_verify_trusts_no_checksum(registry: Registry, task: Task, what: str) -> None:
    """The damage has got into the catalog as well, which no accident does."""
    digest = registry.base("base").object if what == "base" else task.digest
    path = path_of(registry, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    set_checksum(registry, digest, blake3(content).hexdigest())
    itself, used = registry.verify(deep=True)
    assert itself.subject == f"object {digest}"
    assert used.subject == ("base base" if what == "base" else "task victim")
    assert f"is damaged: its SHA-256 is {sha256(path)}" in itself.what


def test_verify_tells_of_everything_that_is_wrong_at_once(registry: Registry, add: Add, task: Task) -> None:
    other = add("other", encoding="bf16")
    path_of(registry, task.digest).unlink()
    path_of(registry, other.digest).write_bytes(b"")
    subjects = {problem.subject for problem in registry.verify()}
    assert {f"object {task.digest}", f"object {other.digest}"} <= subjects


def test_verify_changes_nothing(registry: Registry, task: Task) -> None:
    path_of(registry, task.digest).unlink()
    before = files(registry)
    registry.verify(deep=True)
    assert files(registry) == before


def test_a_task_that_was_damaged_can_be_added_again(registry: Registry, add: Add, task: Task) -> None:
    """Under another name: the store repairs the object as it takes it in."""
    path_of(registry, task.digest).write_bytes(b"damage")
    assert add("again", method="norm-only").digest == task.digest
    assert registry.verify(deep=True) == ()


def test_objects_copied_to_another_folder_are_the_same_registry(registry: Registry, task: Task, tmp_path: Path) -> None:
    registry.close()
    shutil.copytree(registry.home, tmp_path / "copy")
    with Registry.open(tmp_path / "copy") as copy:
        assert copy.verify(deep=True) == ()
        assert copy.task("victim").digest == task.digest
        assert os.fspath(copy.home) == os.fspath(tmp_path / "copy")


# Bases


def test_a_base_that_no_task_is_on_is_removed_with_its_bytes_and_its_budget(registry: Registry, add: Add) -> None:
    kept = add("kept")
    registry.add_base("other", "test_vit", random_init=True, input_size=32)
    registry.set_budget(base="other", max_bytes=10**9)
    registry.remove_base("other")
    assert [base.name for base in registry.bases()] == ["base"]
    assert registry.budgets() == ()
    freed = registry.gc()
    assert len(freed.removed) == 1
    assert registry.verify(deep=True) == ()
    assert registry.task("kept") == kept
    registry.add_base("other", "test_resnet", random_init=True, input_size=32)


def test_a_base_that_tasks_are_on_stays(registry: Registry, add: Add) -> None:
    add("one")
    with pytest.raises(SettingsError, match=r"The base 'base' is needed by one\. Remove these tasks first"):
        registry.remove_base("base")
    assert registry.base("base").layers
    registry.remove("one")
    registry.remove_base("base")
    assert registry.bases() == ()


def test_a_base_that_a_task_in_training_is_on_stays(registry: Registry, add: Add) -> None:
    interrupt(add, "begun")
    with pytest.raises(SettingsError, match=r"The base 'base' is needed by begun\. Remove these tasks first"):
        registry.remove_base("base")
    assert [run.task for run in registry.runs()] == ["begun"]


def test_a_base_that_is_not_there_cannot_be_removed(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="no base 'bse'"):
        registry.remove_base("bse")
