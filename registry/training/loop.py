"""The training loop: epochs of steps, each epoch validated, kept if it is the best, and written to a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from ...plugins.architectures.pieces import Pieces
from ...plugins.methods import Adaptation
from ..data.cache import room
from ..data.loaders import Images, evaluation_loader, mixed, spare_workers, training_loader
from ..data.transforms import evaluation_transform, training_transform
from ..errors import TrainingError
from ..folders import remove_files
from ..records import Footprint
from . import checkpoint
from .device import make_accelerator, seed_everything
from .evaluation import measure
from .job import Best, Job, Outcome
from .optimisation import Optimisation
from .progress import EpochResult, Progress, Step

CHECKPOINT = "checkpoint.safetensors"
TOLD_EVERY = 10  # steps
LAYOUT = 1  # of checkpoints; rises when training could not go on, or not the same, from one of before


class Tally:
    """Loss and hits over the images of an epoch.

    What steps come to stays on the device until ``read``: to look at a value is to wait for all that a GPU has queued.
    """

    def __init__(self) -> None:
        self.loss_sum, self.right, self.seen, self.steps = 0.0, 0, 0, 0
        self.unread: list[tuple[Tensor, Tensor, int]] = []

    def add(self, loss: Tensor, hits: Tensor, images: int) -> None:
        """Take in a step: its mean loss, how many of its images were right, and how many there were."""
        self.unread.append((loss, hits, images))

    def read(self) -> tuple[int, float] | None:
        """Add up what was taken in. Returns step, counted from 1, and value of the first loss that is not finite."""
        if not self.unread:
            return None
        losses, hits, images = zip(*self.unread, strict=True)
        values = torch.stack([*losses, *(right.to(losses[0]) for right in hits)]).tolist()
        self.unread.clear()
        for loss, right, count in zip(values, values[len(losses) :], images, strict=False):
            self.steps += 1
            if not math.isfinite(loss):
                return self.steps, loss
            self.loss_sum, self.right, self.seen = (
                self.loss_sum + loss * count,
                self.right + int(right),
                self.seen + count,
            )
        return None

    @property
    def loss(self) -> float:
        return self.loss_sum / self.seen

    @property
    def accuracy(self) -> float:
        return self.right / self.seen


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
        self._prepare_model()
        self._prepare_data()
        self._prepare_optimisation()
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

    def _prepare_optimisation(self) -> None:
        method = self.adaptation.settings
        self.optimisation = Optimisation(
            self.adaptation.parameter_groups(),
            self.adaptation.score_groups(),
            method.lr,
            self.steps * self.settings.epochs,
            self.accelerator,
        )

    def run(self) -> Outcome:
        """Train to the last epoch.

        Raises:
            TrainingError: on a non-finite loss.
        """
        for epoch in range(self.first_epoch, self.settings.epochs):
            result = self._epoch(epoch)
            self.after_epoch(result)
            self.progress.epoch(result)
        if self.best is None:
            raise TrainingError("No epoch was completed, so there is no result to keep.")
        return Outcome(self.best, checkpoint.load_delta(self.job.folder / self.best.file), tuple(self.history))

    def _epoch(self, epoch: int) -> EpochResult:
        seed_everything(mixed(self.settings.seed, epoch, -2))
        self.sampler.epoch = self.images.epoch = epoch
        self.adaptation.start_epoch(epoch)
        self.adaptation.train()
        tally = Tally()
        for step, (pixels, labels) in enumerate(self.loader):
            try:
                tally.add(*self._step(epoch, step, pixels, labels), len(labels))
            except Exception:
                self._require_finite(epoch, tally)  # what went wrong may have come of that
                raise
            if step % TOLD_EVERY == TOLD_EVERY - 1 or step + 1 == self.steps:
                self._tell(epoch, step, tally)
        return self._close_epoch(epoch, tally.loss, tally.accuracy)

    def _require_finite(self, epoch: int, tally: Tally) -> None:
        """Read what the last steps came to. Raises TrainingError if a loss was not finite."""
        if (fault := tally.read()) is not None:
            number, value = fault
            raise TrainingError(
                f"The loss became {value} at step {number} of epoch {epoch + 1}. Try a lower --lr (it was "
                f"{self.adaptation.settings.lr:g}) or --precision fp32, or look for broken images."
            )

    def _tell(self, epoch: int, step: int, tally: Tally) -> None:
        self._require_finite(epoch, tally)
        states = self.adaptation.layer_states()
        opened, epochs = sum(state.open for state in states), self.settings.epochs
        loss, accuracy = tally.loss, tally.accuracy
        self.progress.step(Step(epoch + 1, epochs, step + 1, self.steps, loss, accuracy, opened, len(states)))

    def _step(self, epoch: int, step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step. Returns the mean loss over the batch and how many of it were right, scalars on the device."""
        update = epoch * self.steps + step
        if self.adaptation.start_step(update / (self.steps * self.settings.epochs)):
            self._train_others(update)
        self.optimisation.set_rates(update)
        with self.accelerator.autocast():
            logits = self.model(pixels).float()
            loss = functional.cross_entropy(logits, labels)
        self.accelerator.backward(loss)
        self.adaptation.after_backward()
        self.accelerator.unscale_gradients(self.optimisation.weights)
        self.adaptation.before_step(self.optimisation.lr)
        self.optimisation.step()
        self.adaptation.after_step()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _train_others(self, update: int) -> None:
        """Go on with other parameters than before.

        Args:
            update: the step that comes, counted over all epochs.
        """
        self.optimisation.follow(self.adaptation, update)
        if self.accelerator.num_processes > 1:
            self.model = self.accelerator.prepare_model(self.raw)

    def _close_epoch(self, epoch: int, loss: float, accuracy: float) -> EpochResult:
        """Validate, keep the epoch if it is the best, write the checkpoint."""
        self.adaptation.end_epoch(epoch)
        self.optimisation.follow(self.adaptation, (epoch + 1) * self.steps)  # a last epoch may fix what is stored
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
                checkpoint.save_delta(self.job.folder / candidate.file, self.adaptation.delta())
        if self.accelerator.is_main_process:
            self._save(epoch)
        self.accelerator.wait_for_everyone()
        return result

    def footprint(self) -> Footprint:
        """What would be stored if training stopped now."""
        return self.job.prices.footprint(self.adaptation.stored())

    def _save(self, epoch: int) -> None:
        """Everything that the next epoch depends on, in one file; then forget bests that are no more."""
        tensors = Pieces(self.raw.state_dict())
        state = {
            "layout": LAYOUT,
            "epoch": epoch + 1,
            "trained_under": self.settings.trained_under(self.job.method),
            "model": {name: tensors[name] for name in sorted(self.adaptation.kept())},
            "adaptation": self.adaptation.state_dict(),
            "optimisation": self.optimisation.state_dict(),
            "best": asdict(self.best) if self.best else None,
            "history": [asdict(result) for result in self.history],
        }
        checkpoint.save(self.job.folder / CHECKPOINT, state)
        bests = self.job.folder.glob("best-*.safetensors")
        remove_files(file for file in bests if self.best is None or file.name != self.best.file)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one.

        If it was made under other settings that weights depend on, begin again at the first epoch with the weights and
        gates that it holds.

        Raises:
            TrainingError: if another version of this package made it.
        """
        path = self.job.folder / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint.load(path)
        if state["layout"] != LAYOUT:
            raise TrainingError(
                "This run was started by a different version of taps-registry and cannot be resumed identically. "
                "Resume it with that version, or give it up with `taps-registry remove` and add the task anew."
            )
        with torch.no_grad():
            pieces = Pieces(self.raw.state_dict())
            for name, tensor in state["model"].items():
                pieces[name].copy_(tensor)
        self.adaptation.load_state_dict(state["adaptation"])
        if state["trained_under"] != self.settings.trained_under(self.job.method):
            self.adaptation.begin_again()
            return
        self._train_others(0)  # the optimiser's state knows since when
        self.optimisation.load_state_dict(state["optimisation"])
        self.first_epoch = state["epoch"]
        self.best = Best(**state["best"]) if state["best"] else None
        self.history = [EpochResult(**result) for result in state["history"]]
