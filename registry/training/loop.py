"""The training loop: accelerate for device and precision, timm for optimiser and schedule, a method for the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional

from ...plugins.architectures import Partition
from ...plugins.architectures.pieces import Pieces
from ...plugins.encodings import Encoding
from ...plugins.methods import Adaptation, Delta, Factors, LayerState, Method, MethodSettings
from ..errors import SettingsError, TrainingError, first_line
from ..models.measure import footprint, roles
from ..models.transforms import evaluation_transform, training_transform
from ..records import Footprint, InputConfig
from . import checkpoint
from .cache import room
from .data import TaskData
from .evaluation import measure
from .images import Images, evaluation_loader, mixed, spare_workers, training_loader
from .progress import EpochResult, Progress, Step
from .settings import PRECISIONS, TaskSettings

CHECKPOINT = "checkpoint.safetensors"
WARMUP_SHARE = 0.05  # of all steps, in which the learning rate rises


@dataclass(frozen=True)
class Common:
    """A set of tasks that have tensors in common.

    Attributes:
        name: of the set, unique on its base.
        arguments: of the method's ``extend``.
        digest: of the object that holds the tensors; empty while this task trains them.
    """

    name: str
    arguments: Mapping[str, Any]
    digest: str = ""


@dataclass(frozen=True)
class Job:
    """All that training needs; it touches neither catalog nor store.

    Attributes:
        settings: of the run.
        model: with the base's weights and a fresh head, on the CPU.
        partition: of the model.
        method: that adapts it.
        method_settings: what it is told.
        encoding: that the result will be stored in, for its size.
        data: images.
        input: what they are turned into.
        backbone_params: what shares are shares of.
        folder: of the run, for checkpoints.
        common: the set whose tensors the task shares, for a method that has such.
    """

    settings: TaskSettings
    model: nn.Module
    partition: Partition
    method: Method
    method_settings: MethodSettings
    encoding: Encoding
    data: TaskData
    input: InputConfig
    backbone_params: int
    folder: Path
    common: Common | None = None


@dataclass(frozen=True)
class Best:
    """The best epoch so far, counted from 1, and the file in the run's folder that holds its delta."""

    epoch: int
    val_accuracy: float
    val_loss: float
    params: int
    settled: bool
    file: str

    def rank(self) -> tuple[bool, float, int, int]:
        """Settled gates first, then accuracy on validation, then fewer parameters, then the later epoch."""
        return (self.settled, self.val_accuracy, -self.params, self.epoch)


@dataclass(frozen=True)
class Outcome:
    """What training ended with."""

    best: Best
    delta: Delta
    history: tuple[EpochResult, ...]


def make_accelerator(device: str, precision: str) -> Any:
    """accelerate's view of the machine.

    Raises:
        SettingsError: for a device or precision that this machine does not have.
    """
    wanted = torch.device("cpu") if device == "auto" and not torch.accelerator.is_available() else None
    if device != "auto":
        try:
            wanted = torch.device(device)
            torch.empty(1, device=wanted)
        except (RuntimeError, AssertionError) as error:
            raise SettingsError(f"--device {device} cannot be used here: {first_line(error)}") from error
    if wanted is not None and wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    AcceleratorState._reset_state(reset_partial_state=True)  # else the process's first precision would be its last
    try:
        return Accelerator(
            cpu=wanted is not None and wanted.type == "cpu",
            mixed_precision=PRECISIONS[precision],
        )
    except ValueError as error:
        raise SettingsError(f"--precision {precision} cannot be used on {device}: {error}") from error


class Trainer:
    """One run of a job, from its checkpoint if it has one.

    Args:
        job: what to train.
        progress: who is told.
        after_epoch: called with each finished epoch, once its checkpoint is on the disk.
    """

    def __init__(self, job: Job, progress: Progress, after_epoch: Callable[[EpochResult], None]) -> None:
        self.job = job
        self.settings = job.settings
        self.progress = progress
        self.after_epoch = after_epoch
        self.accelerator = make_accelerator(job.settings.device, job.settings.precision)
        self.roles = roles(job.partition)
        self._prepare_model()
        self._prepare_data()
        self._prepare_optimisers()
        self.history: list[EpochResult] = []
        self.best: Best | None = None
        self.first_epoch = 0

    def _prepare_model(self) -> None:
        self.raw = self.job.model.to(self.accelerator.device)
        self.adaptation: Adaptation = self.job.method.adapt(self.raw, self.job.partition, self.job.method_settings)
        self.model = self.accelerator.prepare(self.raw)

    def _prepare_data(self) -> None:
        settings, job = self.settings, self.job
        images = len(job.data.train) + len(job.data.val)
        each = room(settings.image_memory, settings.processes) / images
        train = Images(
            job.data.train,
            training_transform(job.input, settings.augment),
            settings.seed,
            fixed=settings.augment == "none",
            room=int(each * len(job.data.train)),
        )
        spare = spare_workers(self.accelerator.device, settings.processes)
        workers = spare if settings.workers is None else settings.workers
        loader, self.sampler = training_loader(train, settings.batch_size, workers)
        self.images = train
        val = Images(job.data.val, evaluation_transform(job.input), fixed=True, room=int(each * len(job.data.val)))
        self.loader = self.accelerator.prepare(loader)
        self.val_loader = self.accelerator.prepare(evaluation_loader(val, settings.batch_size, workers))
        self.steps = len(self.loader)

    def _prepare_optimisers(self) -> None:
        from timm.optim import create_optimizer_v2

        method = self.adaptation.settings
        groups = [group for group in self.adaptation.parameter_groups() if group["params"]]
        fused = self.accelerator.scaler is None  # fp16's scaler cannot tell whether a fused step was skipped
        self.optimiser = self.accelerator.prepare(create_optimizer_v2(groups, opt="adamw", lr=method.lr, fused=fused))
        scores = self.adaptation.score_groups()
        self.score_optimiser = torch.optim.Adam(scores, lr=method.score_lr) if scores else None
        self._prepare_schedules()

    def _prepare_schedules(self) -> None:
        from timm.scheduler import CosineLRScheduler

        method, total = self.adaptation.settings, self.steps * self.settings.epochs
        self.warmup = max(1, round(WARMUP_SHARE * total))
        self.schedules = [
            CosineLRScheduler(
                optimiser,
                t_initial=total,
                lr_min=lr * 0.01,
                warmup_t=self.warmup,
                warmup_lr_init=lr * 0.05,
                t_in_epochs=False,
            )
            for optimiser, lr in ((self.optimiser.optimizer, method.lr), (self.score_optimiser, method.score_lr))
            if optimiser is not None
        ]

    def run(self) -> Outcome:
        """Train to the last epoch.

        Raises:
            TrainingError: on a loss that is not finite.
        """
        for epoch in range(self.first_epoch, self.settings.epochs):
            result = self._epoch(epoch)
            self.after_epoch(result)
            self.progress.epoch(result)
        if self.best is None:
            raise TrainingError("There was no epoch to choose from.")
        return Outcome(self.best, load_delta(self.job.folder / self.best.file), tuple(self.history))

    def _epoch(self, epoch: int) -> EpochResult:
        seed_everything(mixed(self.settings.seed, epoch, -2))
        self.sampler.epoch = self.images.epoch = epoch
        self.adaptation.start_epoch(epoch)
        self.adaptation.train()
        loss_sum, right, seen = 0.0, 0, 0
        for step, (pixels, labels) in enumerate(self.loader):
            loss, hits = self._step(epoch, step, pixels, labels)
            loss_sum, right, seen = loss_sum + loss * len(labels), right + hits, seen + len(labels)
            states = self.adaptation.layer_states() if step % 10 == 9 or step + 1 == self.steps else ()
            if states:
                opened = sum(state.open for state in states)
                at = Step(
                    epoch + 1,
                    self.settings.epochs,
                    step + 1,
                    self.steps,
                    loss_sum / seen,
                    right / seen,
                    opened,
                    len(states),
                )
                self.progress.step(at)
        return self._close_epoch(epoch, loss_sum / seen, right / seen)

    def _step(self, epoch: int, step: int, pixels: Tensor, labels: Tensor) -> tuple[float, int]:
        """One step. Returns the mean loss over the batch and how many of it were right."""
        update = epoch * self.steps + step
        if self.adaptation.start_step(update / (self.steps * self.settings.epochs)):
            self._train_others(update)
        for schedule in self.schedules:
            schedule.step_update(update)
        for group in self.optimiser.param_groups:
            if "since" in group:  # parameters that came while training have a warm-up of their own
                group["lr"] *= min(1.0, (update - group["since"] + 1) / self.warmup)
        with self.accelerator.autocast():
            logits = self.model(pixels).float()
            loss = functional.cross_entropy(logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss became {value} at step {step + 1} of epoch {epoch + 1}. Try a lower --lr (it was "
                f"{self.adaptation.settings.lr:g}) or --precision fp32, or look for broken images."
            )
        self.accelerator.backward(loss)
        self.adaptation.after_backward()
        self.accelerator.unscale_gradients(self.optimiser)
        self.adaptation.before_step(self.optimiser.param_groups[0]["lr"])
        self.optimiser.step()
        if self.score_optimiser is not None:
            if not self.accelerator.optimizer_step_was_skipped:
                self.score_optimiser.step()
            self.score_optimiser.zero_grad()
        self.optimiser.zero_grad()
        self.adaptation.after_step()
        return value, int((logits.argmax(dim=1) == labels).sum())

    def _train_others(self, update: int) -> None:
        """Forget what the optimiser kept of parameters that train no more, and let it know those that are new.

        Args:
            update: the step that comes, counted over all epochs.
        """
        for group in self.optimiser.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    self.optimiser.optimizer.state.pop(parameter, None)
        for group in self.adaptation.late_groups():
            self.optimiser.optimizer.add_param_group({**group, "since": update})
        self._prepare_schedules()
        if self.accelerator.num_processes > 1:
            self.model = self.accelerator.prepare_model(self.raw)

    def _close_epoch(self, epoch: int, loss: float, accuracy: float) -> EpochResult:
        """Validate, keep the epoch if it is the best, write the checkpoint."""
        self.adaptation.end_epoch(epoch)
        measured = measure(self.model, self.val_loader, self.accelerator)
        size = self.footprint()
        states = self.adaptation.layer_states()
        candidate = Best(
            epoch=epoch + 1,
            val_accuracy=measured.accuracy,
            val_loss=measured.loss,
            params=size.params.total,
            settled=self.adaptation.settled(epoch),
            file=f"best-{epoch + 1:04d}.safetensors",
        )
        better = self.best is None or candidate.rank() > self.best.rank()
        result = EpochResult(
            epoch=epoch + 1,
            epochs=self.settings.epochs,
            loss=loss,
            penalty=self.adaptation.penalty(),
            accuracy=accuracy,
            val_loss=measured.loss,
            val_accuracy=measured.accuracy,
            open_layers=sum(state.open for state in states),
            layers=len(states),
            params=size.params.total,
            share_of_base=(size.params.weights + size.params.norms) / self.job.backbone_params,
            bytes=size.bytes,
            best=better,
            scores={state.name: round(state.score, 6) for state in states if state.score is not None},
        )
        self.history.append(result)
        if better:
            self.best = candidate
            if self.accelerator.is_main_process:
                save_delta(self.job.folder / candidate.file, self.adaptation.delta())
        if self.accelerator.is_main_process:
            self._save(epoch)
        self.accelerator.wait_for_everyone()
        return result

    def footprint(self) -> Footprint:
        """What would be stored if training stopped now."""
        return footprint(self.adaptation.stored(), self.raw.state_dict(), self.roles, self.job.encoding)

    def _save(self, epoch: int) -> None:
        """Everything that the next epoch depends on, in one file; then forget bests that are no more."""
        tensors = Pieces(self.raw.state_dict())
        scaler = self.accelerator.scaler
        state = {
            "epoch": epoch + 1,
            "trained_under": self.settings.trained_under(),
            "model": {name: tensors[name] for name in sorted(self.adaptation.trained)},
            "adaptation": self.adaptation.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scores": self.score_optimiser.state_dict() if self.score_optimiser else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best": asdict(self.best) if self.best else None,
            "history": [asdict(result) for result in self.history],
        }
        checkpoint.save(self.job.folder / CHECKPOINT, state)
        for file in self.job.folder.glob("best-*.safetensors"):
            if self.best is None or file.name != self.best.file:
                file.unlink()

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one.

        If it was made under other settings that weights depend on, begin again at the first epoch with the weights and
        gates that it holds.
        """
        path = self.job.folder / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint.load(path)
        with torch.no_grad():
            own = Pieces(self.raw.state_dict())
            for name, tensor in state["model"].items():
                own[name].copy_(tensor)
        self.adaptation.load_state_dict(state["adaptation"])
        if state["trained_under"] != self.settings.trained_under():
            self.adaptation.begin_again()
            return
        self._train_others(0)  # the optimiser's state knows since when
        self.optimiser.load_state_dict(_with_tuples(state["optimiser"]))
        if self.score_optimiser is not None:
            self.score_optimiser.load_state_dict(_with_tuples(state["scores"]))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.first_epoch = state["epoch"]
        self.best = Best(**state["best"]) if state["best"] else None
        self.history = [EpochResult(**result) for result in state["history"]]


def _with_tuples(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state as the optimiser gave it: its betas were a tuple."""
    groups = [{**group, "betas": tuple(group["betas"])} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def save_delta(path: Path, delta: Delta) -> None:
    """Keep a delta as it is in memory, before any encoding."""
    layers = [asdict(layer) for layer in delta.layers]
    factors = {
        name: {"form": one.form, "parts": one.parts, "params": one.params} for name, one in delta.factors.items()
    }
    checkpoint.save(path, {"tensors": delta.tensors, "layers": layers, "factors": factors})


def load_delta(path: Path) -> Delta:
    """Read back what ``save_delta`` wrote. Raises IntegrityError if the file is damaged."""
    state: Mapping[str, Any] = checkpoint.load(path)
    factors = {name: Factors(**one) for name, one in state["factors"].items()}
    return Delta(state["tensors"], tuple(LayerState(**layer) for layer in state["layers"]), factors)


def seed_everything(seed: int) -> None:
    """Set the random states that models and augmentations draw from."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
