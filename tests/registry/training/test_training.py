"""Training: reproducible, resumable, chosen on validation alone, stopped with a word."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.profiler import ProfilerActivity, profile

from taps_registry import Registry
from taps_registry.plugins.methods import Adaptation
from taps_registry.registry.catalog import runs
from taps_registry.registry.errors import (
    BusyError,
    DataError,
    Interrupted,
    NotFoundError,
    SettingsError,
    TrainingError,
)
from taps_registry.registry.folders import held
from taps_registry.registry.records import Task
from taps_registry.registry.training import adding, checkpoint, processes
from taps_registry.registry.training.device import make_accelerator
from taps_registry.registry.training.job import Best
from taps_registry.registry.training.loop import CHECKPOINT, Trainer
from taps_registry.registry.training.optimisation import Optimisation
from taps_registry.registry.training.progress import EpochResult, Progress

Add = Callable[..., Task]
LONGER = {"epochs": 4, "augment": "standard", "sparsity": 30.0, "score_lr": 0.05}


class StopsAfter(Progress):
    """Presses Ctrl-C when an epoch has ended."""

    def __init__(self, epoch: int) -> None:
        self.stop = epoch

    def epoch(self, result: EpochResult) -> None:
        if result.epoch == self.stop:
            raise KeyboardInterrupt


class Watches(Progress):
    def __init__(self) -> None:
        self.results: list[EpochResult] = []
        self.notes: list[str] = []

    def epoch(self, result: EpochResult) -> None:
        self.results.append(result)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_same_seed_gives_the_same_artifact_and_another_seed_another(add: Add) -> None:
    first, second, other = add("first", **LONGER), add("second", **LONGER), add("other", **LONGER, seed=1)
    assert first.digest == second.digest
    assert first.digest != other.digest


def test_the_number_of_workers_does_not_change_the_artifact(add: Add) -> None:
    assert add("none", **LONGER).digest == add("two", **LONGER, workers=2).digest
    assert multiprocessing.active_children() == []


def test_memory_for_images_does_not_change_the_artifact(add: Add) -> None:
    sizes = {"none": 0, "some": 50_000, "all": None}
    assert len({add(name, **LONGER, image_memory=size).digest for name, size in sizes.items()}) == 1


def test_training_moves_the_callers_random_states_only_as_much_as_it_says(add: Add) -> None:
    """Adding a task in a program that draws random numbers gives the same task whatever was drawn before."""
    first = add("first")
    torch.rand(7)
    assert add("second").digest == first.digest


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_resumes_to_the_artifact_of_an_undisturbed_one(
    registry: Registry, add: Add, stop: int
) -> None:
    undisturbed = add("undisturbed", **LONGER)
    with pytest.raises(Interrupted, match="taps-registry add-task stopped --resume"):
        add("stopped", **LONGER, progress=StopsAfter(stop))
    assert registry.runs("stopped")[0].state == "interrupted"
    assert registry.task("stopped").state == "training"
    watch = Watches()
    resumed = registry.resume_task("stopped", progress=watch)
    assert [result.epoch for result in watch.results] == list(range(stop + 1, 5))
    assert resumed.digest == undisturbed.digest
    assert registry.runs("stopped")[0].state == "finished"
    assert not list((registry.home / "runs").glob("*/*.safetensors"))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_with_closed_gates_resumes_to_the_same_artifact(registry: Registry, add: Add, stop: int) -> None:
    """In its first epoch some gates close, in its second all are fixed."""
    told = {"epochs": 5, "method": "taps", "budget": "20%", "batch_size": 7}
    undisturbed = add("undisturbed", **told)
    with pytest.raises(Interrupted):
        add("stopped", **told, progress=StopsAfter(stop))
    assert registry.resume_task("stopped").digest == undisturbed.digest


def test_checkpoints_leave_out_what_factors_give_back(registry: Registry, add: Add) -> None:
    """A run within a budget goes on with factors once they are chosen: whole weights follow from them."""
    with pytest.raises(Interrupted):
        add("task", epochs=4, method="taps-rank", budget="20%", progress=StopsAfter(1))
    state = checkpoint.load(registry.home / "runs" / registry.runs("task")[0].id / CHECKPOINT)
    factors = state["adaptation"]["factors"]
    assert factors
    assert factors.keys().isdisjoint(state["model"])
    assert {"bn1.weight", "bn1.running_mean"} <= state["model"].keys()


def test_a_run_that_another_version_began_is_kept_for_that_version(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", **LONGER, progress=StopsAfter(1))
    path = registry.home / "runs" / registry.runs("task")[0].id / CHECKPOINT
    state = checkpoint.load(path)
    state["layout"] += 1
    checkpoint.save(path, state)
    with pytest.raises(TrainingError, match="Resume it with that version"):
        registry.resume_task("task")
    assert checkpoint.load(path)["epoch"] == state["epoch"]
    registry.remove("task")
    assert add("task", **LONGER).state == "ready"


def test_a_killed_process_resumes_to_the_artifact_of_an_undisturbed_one(
    registry: Registry, add: Add, images: Path
) -> None:
    undisturbed = add("undisturbed", **{**LONGER, "epochs": 6})
    options = {**LONGER, "epochs": 6, "tracker": "none", "workers": 0, "batch_size": 8}
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-c", "from taps_registry.cli.main import run; run()", "--home", str(registry.home)]
    process = subprocess.Popen(
        [*command, "add-task", "killed", "--base", "base", "--data", str(images), *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/6"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert registry.runs("killed")[0].state == "interrupted"  # nobody could say so: its lock is free
    assert registry.resume_task("killed").digest == undisturbed.digest
    assert registry.verify(deep=True) == ()


def test_a_run_stopped_before_its_first_epoch_can_be_resumed(registry: Registry, add: Add) -> None:
    class AtOnce(Progress):
        def step(self, step: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        add("task", progress=AtOnce())
    assert registry.resume_task("task").digest == add("undisturbed").digest


def test_a_run_in_training_cannot_be_resumed_or_removed_by_another(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", epochs=2, progress=StopsAfter(1))
    run = registry.runs("task")[0].id
    from taps_registry.registry.home import Home

    with held(Home(registry.home), run):
        with pytest.raises(BusyError, match="being trained"):
            registry.resume_task("task")
        with pytest.raises(BusyError, match="being trained"):
            registry.remove("task")
    registry.remove("task")
    assert registry.tasks() == ()


def test_there_is_nothing_to_resume_of_a_finished_or_unknown_task(registry: Registry, add: Add) -> None:
    add("task")
    with pytest.raises(NotFoundError, match="finished"):
        registry.resume_task("task")
    with pytest.raises(NotFoundError, match=r"no task 'tusk'\. Did you mean 'task'"):
        registry.resume_task("tusk")


def test_a_resumed_run_keeps_what_makes_it_that_run(registry: Registry, add: Add, tmp_path: Path, images: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    with pytest.raises(Interrupted):
        add("task", epochs=2, data=moved, progress=StopsAfter(1))
    with pytest.raises(SettingsError, match="keeps its --batch-size, --seed"):
        registry.resume_task("task", seed=3, batch_size=4)
    shutil.copy(moved / "dark" / "0.png", moved / "light" / "0.png")
    with pytest.raises(DataError, match="not those that the run of 'task' began with"):
        registry.resume_task("task")
    assert registry.resume_task("task", data=images, workers=1).state == "ready"


def test_another_sparsity_trains_again_from_the_weights_reached(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", **LONGER, progress=StopsAfter(4))
    watch = Watches()
    registry.resume_task("task", progress=watch, sparsity=0.0)
    assert [result.epoch for result in watch.results] == [1, 2, 3, 4]
    assert watch.results[-1].penalty == 0


def test_fewer_epochs_than_are_done_are_for_a_run_that_begins_again(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", epochs=4, progress=StopsAfter(3))
    with pytest.raises(SettingsError, match="'task' has 3 epochs behind it: --epochs must be at least that, got 2"):
        registry.resume_task("task", epochs=2)
    (run,) = registry.runs()
    assert (run.state, run.epoch, run.settings["epochs"]) == ("interrupted", 3, 4)
    watch = Watches()
    registry.resume_task("task", progress=watch, epochs=2, sparsity=0.0)
    assert [result.epoch for result in watch.results] == [1, 2]


def test_more_epochs_go_on_where_the_run_was(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", epochs=2, progress=StopsAfter(2))
    watch = Watches()
    registry.resume_task("task", progress=watch, epochs=3)
    assert [result.epoch for result in watch.results] == [3]


def test_the_best_epoch_is_chosen_on_validation_and_never_on_test(add: Add, images: Path, tmp_path: Path) -> None:
    """Whatever the test images are, the artifact is the same; only its measured accuracy differs."""
    tests = tmp_path / "tests"
    shutil.copytree(images, tests)
    shutil.move(tests / "dark", tests / "swap")
    shutil.move(tests / "light", tests / "dark")
    shutil.move(tests / "swap", tests / "light")
    right = add("right", **LONGER, test_data=images)
    wrong = add("wrong", **LONGER, test_data=tests)
    assert right.digest == wrong.digest
    assert right.metrics["val/accuracy"] == wrong.metrics["val/accuracy"]
    assert right.metrics["test/accuracy"] != wrong.metrics["test/accuracy"]


def test_epochs_rank_by_settled_gates_then_accuracy_then_size_then_age() -> None:
    def best(epoch: int, accuracy: float, params: int, settled: bool) -> Best:
        return Best(epoch, accuracy, 0.0, params, settled, "")

    ranked = [
        best(1, 0.99, 1, False),
        best(5, 0.80, 9, True),
        best(6, 0.90, 9, True),
        best(5, 0.90, 8, True),
        best(7, 0.90, 8, True),
    ]
    assert sorted(ranked, key=Best.rank) == ranked


def test_reported_metrics_are_those_of_the_stored_artifact(registry: Registry, add: Add, images: Path) -> None:
    task = add("task", encoding="bf16", test_data=images)
    found = registry.evaluate("task", images)
    assert found.accuracy == task.metrics["test/accuracy"]
    assert found.loss == pytest.approx(task.metrics["test/loss"], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_what_to_try(registry: Registry, add: Add) -> None:
    with pytest.raises(TrainingError, match=r"The loss became (nan|inf) at step \d+ of epoch 1. Try a lower --lr"):
        add("task", lr=1e30, epochs=2)
    assert registry.tasks() == (), "nothing was trained, so nothing is reserved"
    assert registry.runs()[0].state == "failed"
    assert "The loss became" in registry.runs()[0].error
    assert add("task").state == "ready"


def test_a_run_that_fails_later_keeps_its_last_good_epoch(registry: Registry, add: Add) -> None:
    with pytest.raises(Interrupted):
        add("task", epochs=3, progress=StopsAfter(2))
    with pytest.raises(TrainingError, match="Then continue with: taps-registry add-task task --resume"):
        registry.resume_task("task", lr=1e30)
    assert registry.task("task").state == "training"
    assert registry.resume_task("task", lr=1e-3).state == "ready"


def test_mixed_precision_trains_and_a_wrong_device_is_named(add: Add) -> None:
    assert add("task", precision="bf16").state == "ready"
    with pytest.raises(SettingsError, match="--device nonsense cannot be used here"):
        add("other", device="nonsense")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_in_every_precision(registry: Registry, add: Add, precision: str) -> None:
    assert add("task", device="cuda", precision=precision, epochs=2).state == "ready"
    assert registry.verify(deep=True) == ()


FEW_STEPS: dict[str, Any] = {
    "epochs": 1,
    "augment": "none",
    "tracker": "none",
    "workers": 0,
    "device": "cpu",
    "lr": 3e-3,
}
IN_TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "loaded by workers": ("base", {"epochs": 1, "batch_size": 4, "workers": 1}),
    "within a budget": ("base", {"epochs": 2, "batch_size": 4, "workers": 0, "method": "taps", "budget": "20%"}),
    "vit": ("vit", {**FEW_STEPS, "method": "full", "batch_size": 4}),
}


@pytest.fixture(scope="module")
def in_two(home_with_base: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with tasks that two processes trained, added by a program of its own: torch's process groups do not
    outlive it, and each of the two takes seconds to import torch.
    """
    home = shutil.copytree(home_with_base, tmp_path_factory.mktemp("two") / "home")
    with Registry.open(home) as registry:
        registry.add_base("vit", "test_vit", random_init=True, input_size=32)
        program = f"""
from taps_registry import Registry
if __name__ == "__main__":
    with Registry.open({str(registry.home)!r}) as registry:
        for name, (base, told) in {IN_TWO!r}.items():
            told = {{"device": "cpu", "tracker": "none", "processes": 2, **told}}
            registry.add_task(name.replace(" ", "-"), base, {str(images)!r}, **told)
"""
        done = run_script(registry, program)
        assert done.returncode == 0, done.stderr
        yield registry


@pytest.mark.parametrize("name", ["loaded by workers", "within a budget"])
def test_two_processes_train_one_task(in_two: Registry, name: str) -> None:
    """Each may have processes that load its images. A budget changes what trains on the way."""
    task = in_two.task(name.replace(" ", "-"))
    assert task.state == "ready"
    assert task.open_layers > 0
    assert in_two.verify(deep=True) == ()


def run_script(registry: Registry, program: str) -> subprocess.CompletedProcess[str]:
    script = registry.home / "two.py"
    script.write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_two_processes_train_as_one_does_with_batches_of_twice_the_size(in_two: Registry, images: Path) -> None:
    """Each has a model of its own, and they agree on gradients. A ViT, whose norms know no batch."""
    in_two.add_task("still", "vit", images, method="head-only", **FEW_STEPS)
    in_two.add_task("one", "vit", images, method="full", batch_size=8, **FEW_STEPS)
    states = (in_two.load(name, device="cpu").model.state_dict() for name in ("still", "one", "vit"))
    still, alone, together = (torch.cat([v.flatten() for k, v in s.items() if "head" not in k]) for s in states)
    assert float((together - alone).norm()) < 0.1 * float((alone - still).norm()), "one step each time, not two"


def test_another_process_trains_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch hands a model over in memory that both processes see, and would both write to."""
    shared: list[bool] = []

    class Looks:
        def __init__(self, job: Any, *_: object) -> None:
            shared.append(next(job.model.parameters()).is_shared())

        def restore(self) -> None: ...

        def run(self) -> None: ...

    monkeypatch.setattr(processes, "Trainer", Looks)
    job = make_dataclass("Handed", ["model"])(torch.nn.Linear(2, 2).share_memory())
    processes._companion(job, multiprocessing.get_context("spawn").Semaphore(0), {})
    assert shared == [False]


def test_a_process_that_dies_before_it_begins_is_not_waited_for(registry: Registry, images: Path) -> None:
    program = f"""
from taps_registry import Registry
with Registry.open({str(registry.home)!r}) as registry:
    registry.add_task("two", "base", {str(images)!r}, processes=2, batch_size=4, device="cpu", tracker="none")
"""
    done = run_script(registry, program)
    assert done.returncode != 0
    assert "Training processes died before they began: rank 1" in done.stderr
    assert 'needs `if __name__ == "__main__":`' in done.stderr


def test_what_came_late_keeps_its_place_in_a_run_of_fewer_steps() -> None:
    """As when a run is resumed with more processes: its factors warm up no longer, and never against the gradient."""
    weight, factor = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))

    def optimisation(steps: int) -> Optimisation:
        made = Optimisation([{"params": [weight]}], [], 1e-3, steps, make_accelerator("cpu", "fp32"))
        late = SimpleNamespace(trains=lambda _: True, late_groups=lambda: [{"params": [factor], "lr": 4e-3}])
        made.follow(cast(Adaptation, late), steps // 20)
        return made

    long, short = optimisation(3000), optimisation(750)
    short.load_state_dict(long.state_dict())
    for share in (1 / 15, 0.2, 0.9):
        long.set_rates(round(share * 3000))
        short.set_rates(round(share * 750))
        found, wanted = (made.weights.param_groups[1]["lr"] for made in (short, long))
        assert 0 < found == pytest.approx(wanted, rel=0.05)


def test_a_run_of_one_step_can_be_resumed(registry: Registry, add: Add) -> None:
    """What it stores was fixed after its only step."""
    with pytest.raises(Interrupted):
        add("task", budget="5%", epochs=1, batch_size=64, progress=StopsAfter(1))
    assert registry.resume_task("task").digest == add("undisturbed", budget="5%", epochs=1, batch_size=64).digest


def test_a_catalog_that_is_busy_for_a_moment_stops_no_run(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = runs.update

    def refuse(session: object, run: str, **values: object) -> None:
        if "epoch" in values:
            raise BusyError("The catalog is locked.")
        update(session, run, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "update", refuse)
    watch = Watches()
    assert add("task", epochs=2, progress=watch).state == "ready"
    told = [note for note in watch.notes if "does not know that epoch" in note]
    assert told == [f"The catalog does not know that epoch {n} has ended: The catalog is locked." for n in (1, 2)]


def test_a_task_that_is_in_the_catalog_is_there_whatever_comes_after(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(adding, "drop_weights", fail)
    watch = Watches()
    assert add("task", progress=watch).state == "ready"
    assert watch.notes == [
        "'task' was added, but what its run came to was not all written down: No space left on device"
    ]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adding._TrainingRun, "_publish", _then(adding._TrainingRun._publish, interrupt))
    with pytest.raises(Interrupted, match=r"Stopped\. 'other' had been added just before: it is ready\."):
        add("other")
    assert registry.task("other").state == "ready"


def _then(first: Callable[..., object], second: Callable[..., None]) -> Callable[..., object]:
    def both(*given: object) -> object:
        made = first(*given)
        second()
        return made

    return both


def test_tasks_are_loaded_and_measured_while_another_trains(registry: Registry, add: Add, images: Path) -> None:
    """accelerate has one state a process: whoever makes it anew changes the precision of a run in training."""
    add("first", test_data=images)
    states: list[str] = []

    class Looks(Progress):
        def epoch(self, result: EpochResult) -> None:
            before = AcceleratorState().mixed_precision
            registry.evaluate("first", images, device="cpu")
            states.append(f"{before} {AcceleratorState().mixed_precision}")

    add("second", precision="bf16", progress=Looks())
    assert states == ["bf16 bf16"]


def test_a_checkpoint_reads_back_what_was_saved(tmp_path: Path) -> None:
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(2, 3)}, 1: {}},
        "param_groups": [{"lr": 0.1, "foreach": None, "maximize": False, "params": [0, 1]}],
        "name": "x",
        "bf16": torch.rand(3).bfloat16(),
    }
    checkpoint.save(tmp_path / "c.safetensors", state)
    back = checkpoint.load(tmp_path / "c.safetensors")
    assert torch.equal(back["state"][0].pop("exp_avg"), state["state"][0].pop("exp_avg"))
    assert torch.equal(back["bf16"], state["bf16"])
    assert back["state"][1] == {}
    assert back["param_groups"] == state["param_groups"]


def test_epochs_report_what_they_would_store(add: Add) -> None:
    watch = Watches()
    task = add("task", **LONGER, progress=watch)
    assert [result.best for result in watch.results].count(True) >= 1
    chosen = [result for result in watch.results if result.best][-1]
    assert chosen.params == task.params.total
    assert chosen.open_layers == task.open_layers
    assert 0 < task.bytes - chosen.bytes < 40_000  # the header


def test_too_large_an_input_for_a_model_of_fixed_size_is_refused(tmp_path: Path, images: Path) -> None:
    with Registry.init(tmp_path / "home") as registry:
        registry.add_base("vit", "test_vit", random_init=True, input_size=32, arguments={"dynamic_img_size": False})
        with pytest.raises(SettingsError, match="does not take images of 48x48 pixels"):
            registry.add_task("task", "vit", images, input_size=48, epochs=1, tracker="none")


@pytest.mark.parametrize("method", ["full", "lora", "norm-only", "taps-rank"])
def test_a_step_waits_for_no_value_of_the_device(
    registry: Registry, add: Add, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """To read one is to wait for all that a GPU has queued; only the step that fixes what is stored may.

    The optimiser is left out: on a CPU it counts its steps there.
    """
    reading: list[int] = []
    take = Trainer._step

    def watched(self: Trainer, *arguments: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            outcome = take(self, *arguments)
        reading.append(sum(event.count for event in found.key_averages() if event.key == "aten::_local_scalar_dense"))
        return outcome

    monkeypatch.setattr(Trainer, "_step", watched)
    monkeypatch.setattr(Optimisation, "step", lambda self: self.weights.zero_grad())
    add("task", method=method, epochs=2, batch_size=8, **({"budget": "20%"} if method == "taps-rank" else {}))
    assert len(reading) > 4
    assert sum(count > 0 for count in reading) <= (method == "taps-rank"), reading
