"""Readers beside processes that recode, remove and collect: nobody is told of damage that there is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from taps_registry import Registry
from taps_registry.registry import verifying
from taps_registry.registry.errors import IntegrityError, NotFoundError
from taps_registry.registry.records import Task
from taps_registry.registry.store.objects import ObjectStore

Add = Callable[..., Task]
SECONDS = 4.0

WRITER = """
import sys, time
from taps_registry import Registry
from taps_registry.registry.errors import BusyError
last = time.monotonic() + float(sys.argv[2])
with Registry.open(sys.argv[1]) as registry:
    rounds = 0
    while time.monotonic() < last:
        for encoding in ("int8", "fp32"):
            registry.recode("one", encoding)
            registry.gc()
            rounds += 1
print(rounds)
"""


def once(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Lets something happen between a reader's look at the catalog and its first look at a file."""
    get = ObjectStore.get
    asked: list[str] = []

    def slow(store: ObjectStore, digest: str) -> Path:
        asked.append(digest)
        if len(asked) == 1:
            action()
        return get(store, digest)

    monkeypatch.setattr(ObjectStore, "get", slow)


def recode_and_collect(registry: Registry) -> None:
    """What another process would do."""
    with Registry.open(registry.home) as other:
        other.recode("one", "int8")
        other.gc()


def test_a_task_whose_file_was_replaced_and_collected_meanwhile_is_looked_up_again(
    registry: Registry, add: Add, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = add("one", method="full")
    once(monkeypatch, lambda: recode_and_collect(registry))
    (prediction,) = registry.predict("one", [next(images.rglob("*.png"))])
    assert prediction.label in before.classes
    assert registry.load("one").version == 2


def test_a_task_that_was_removed_and_collected_meanwhile_is_not_there(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("one")

    def remove() -> None:
        with Registry.open(registry.home) as other:
            other.remove("one")
            other.gc()

    once(monkeypatch, remove)
    with pytest.raises(NotFoundError, match="There is no task 'one'"):
        registry.load("one")


def test_a_task_that_was_recoded_meanwhile_is_recoded_from_its_new_version(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("one", method="full")
    once(monkeypatch, lambda: recode_and_collect(registry))
    assert registry.recode("one", "bf16").version == 3


def test_a_file_that_is_missing_and_still_referred_to_is_damage(registry: Registry, add: Add) -> None:
    task = add("one")
    (registry.home / "objects" / task.digest[:2] / f"{task.digest[2:]}.safetensors").unlink()
    with pytest.raises(IntegrityError, match=f"Object {task.digest} is missing"):
        registry.load("one")
    assert registry.verify()


@pytest.mark.parametrize("deep", [False, True])
def test_verify_does_not_report_what_was_collected_after_it_asked_the_catalog(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch, deep: bool
) -> None:
    add("one", method="full")
    look_up, calls = verifying._look_up, []

    def slow(context: object) -> object:
        calls.append(1)
        seen = look_up(context)  # type: ignore[arg-type]
        if len(calls) == 1:
            recode_and_collect(registry)
        return seen

    monkeypatch.setattr(verifying, "_look_up", slow)
    assert registry.verify(deep=deep) == ()
    assert len(calls) == 2


def test_gc_forgets_objects_in_the_catalog_before_it_removes_their_files(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two leaves files that nothing refers to, and the next ``gc`` takes them."""
    from taps_registry.registry import upkeep

    task = add("one")
    registry.remove("one")

    def crash(paths: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upkeep, "remove_files", crash)
        with pytest.raises(KeyboardInterrupt):
            registry.gc()
    assert registry.verify(deep=True) == ()
    assert f"object {task.digest}" in registry.gc().removed


def test_predict_and_verify_beside_recode_and_gc_in_another_process(registry: Registry, add: Add, images: Path) -> None:
    add("one", method="full")
    image = next(images.rglob("*.png"))
    command = [sys.executable, "-c", WRITER, str(registry.home), str(SECONDS)]
    rounds = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        last = time.monotonic() + 60
        while writer.poll() is None:
            assert time.monotonic() < last, "the other process does not end"
            registry.predict("one", [image], device="cpu")
            assert registry.verify(deep=rounds % 2 == 0) == ()
            rounds += 1
        said, errors = writer.communicate()
    assert writer.returncode == 0, errors
    assert int(said) > 1
    assert rounds > 1
