"""A process that loads images dies: the run ends at once, says why and what to do, and can be resumed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from taps_registry import Registry
from taps_registry.registry.data.loaders import Images
from taps_registry.registry.data.workers import deaths_explained
from taps_registry.registry.errors import TrainingError
from taps_registry.registry.records import Task
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]
# torch raises at the signal, wherever this process is just then, if only in a finaliser; then it finds out later.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def loaders() -> list[psutil.Process]:
    """Processes that load images for this one or for those that train with it."""
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "pt_data_worker"]


class Killer(Progress):
    """Sends a signal to a loader process, of another process that trains if there is one, after an epoch."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.killed = False

    def epoch(self, result: EpochResult) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.killed:
            self.killed = True
            others = [loader for loader in loaders() if loader.ppid() != os.getpid()]
            # the first one is of the training images, and lives for all epochs
            os.kill(min(others or loaders(), key=lambda loader: (loader.create_time(), loader.pid)).pid, self.number)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was killed, most likely because memory ran out"),
        (signal.SIGBUS, "found no room in shared memory"),
        (signal.SIGSEGV, "died"),
    ],
)
def test_the_death_of_a_loader_process_ends_the_run_which_can_be_resumed(
    registry: Registry, add: Add, number: signal.Signals, said: str
) -> None:
    with pytest.raises(
        TrainingError, match=rf"({said}|died\.).*--workers 0\. Then continue with: .*add-task one --resume$"
    ):
        add("one", workers=2, epochs=3, progress=Killer(number))
    (run,) = registry.runs("one")
    assert run.state == "failed"
    assert run.error.startswith("A process that loads images ")
    assert loaders() == []
    undisturbed = add("undisturbed", epochs=3)
    assert registry.resume_task("one", workers=0).digest == undisturbed.digest


def die(self: Images, index: int) -> None:
    """Instead of an image, in a loader process."""
    assert multiprocessing.parent_process() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_in_the_first_epoch_leaves_a_run_to_resume(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", die)
        with pytest.raises(TrainingError, match="--resume"):
            add("one", workers=1)
    assert registry.resume_task("one", workers=0).state == "ready"


def test_a_death_beside_another_training_process_ends_both(registry: Registry, add: Add) -> None:
    first_heard = r"(A process that loads images .*--workers 0\.|Training processes died: rank 1\.).*--resume$"
    with pytest.raises(TrainingError, match=first_heard):  # of the loader's death, or of that of the process it served
        add("one", workers=1, epochs=3, processes=2, device="cpu", batch_size=4, progress=Killer(signal.SIGKILL))
    gc.collect()  # of the loaders that the error's traceback refers to
    assert loaders() == []


def test_evaluate_says_so_too(registry: Registry, add: Add, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add("one")
    monkeypatch.setattr(Images, "__getitem__", die)
    with pytest.raises(TrainingError, match="was killed, most likely because memory ran out"):
        registry.evaluate("one", images, split="all", workers=1)


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("CUDA error"), OSError(28, "No space left", "file"), OSError(5, "I/O error")):
        with pytest.raises(type(error)) as caught, deaths_explained():
            raise error
        assert caught.value is error
