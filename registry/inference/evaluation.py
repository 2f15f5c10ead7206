"""How right a task is on labelled images: averages, each class, each image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..catalog import runs
from ..context import Context
from ..data.held_out import HeldOut, Trained, open_held_out
from ..data.loaders import Images, evaluation_loader
from ..data.transforms import evaluation_transform
from ..data.workers import deaths_explained
from ..errors import SettingsError
from ..home import require_outside
from ..records import ClassScores, Evaluation
from ..store.files import write_file
from ..training.device import find_device
from .compose import compose_task
from .task_model import TaskModel, task_model

MOST = 30  # classes whose names and counts can be read


@dataclass(frozen=True)
class Answers:
    """What a task said of ``N`` images.

    Attributes:
        labels: of the images, ``(N,)`` int64.
        predicted: the most likely classes, ``(N,)`` int64.
        probabilities: of these, ``(N,)`` float32.
        losses: cross-entropies in nats, ``(N,)`` float64.
    """

    labels: NDArray[Any]
    predicted: NDArray[Any]
    probabilities: NDArray[Any]
    losses: NDArray[Any]


def evaluate_task(
    context: Context,
    name: str,
    data: str,
    *,
    split: str,
    skip_bad_images: bool,
    confusion: Path | None,
    predictions: Path | None,
    batch_size: int,
    workers: int,
    device: str,
) -> Evaluation:
    """Ask a task about images that it was not trained with, and write the files wanted. See ``Registry.evaluate``."""
    check_files(confusion, predictions)
    record, _, composed = compose_task(context, name)
    task = task_model(record, composed, find_device(device))
    with context.catalog.read() as session:
        run = runs.get(session, record.run) if record.run else None
    trained = Trained(record.settings, run.fingerprint if run else "")
    images = open_held_out(data, task.classes, trained, split, skip_bad_images=skip_bad_images)
    answers = answer(task, images, batch_size, workers)
    if predictions is not None:
        write_predictions(predictions, task.classes, images, answers)
    if confusion is not None:
        write_confusion(confusion, task.classes, answers)
    return evaluate(task, images, answers)


@deaths_explained()
@torch.inference_mode()
def answer(task: TaskModel, images: HeldOut, batch_size: int, workers: int) -> Answers:
    """Ask a task about every image, in their order."""
    loader = evaluation_loader(Images(images.samples, evaluation_transform(task.input)), batch_size, workers)
    rows = []
    for pixels, labels in loader:
        logits = task.model(pixels.to(task.device)).float().cpu()
        probabilities, predicted = logits.softmax(dim=1).max(dim=1)
        losses = functional.cross_entropy(logits, labels, reduction="none").double()
        rows.append((labels, predicted, probabilities, losses))
    return Answers(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))


def evaluate(task: TaskModel, images: HeldOut, answers: Answers) -> Evaluation:
    """Averages and scores of each class, by scikit-learn; averages over classes leave out those without images."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        answers.labels, answers.predicted, labels=range(len(task.classes)), zero_division=0
    )
    there = support > 0
    return Evaluation(
        task=task.task,
        version=task.version,
        split=images.split,
        images=len(answers.labels),
        accuracy=float(accuracy_score(answers.labels, answers.predicted)),
        balanced_accuracy=float(recall[there].mean()),
        macro_f1=float(f1[there].mean()),
        loss=float(answers.losses.mean()),
        classes=tuple(
            ClassScores(name, float(precision[label]), float(recall[label]), float(f1[label]), int(support[label]))
            for label, name in enumerate(task.classes)
        ),
        notes=images.notes,
    )


def write_predictions(path: Path, classes: Sequence[str], images: HeldOut, answers: Answers) -> None:
    """Write a line of CSV for each image: its name, its class, the most likely class and its probability.

    Raises StorageError if the disk refuses.
    """
    rows = zip(images.samples, answers.labels, answers.predicted, answers.probabilities, strict=True)
    _write_csv(
        path,
        ("image", "class", "predicted", "probability"),
        (
            (sample.name, classes[label], classes[guess], f"{probability:.6f}")
            for sample, label, guess, probability in rows
        ),
    )


def write_confusion(path: Path, classes: Sequence[str], answers: Answers) -> None:
    """Write how many images of each class (rows) were taken for which class (columns), as CSV or as a picture.

    Raises StorageError if the disk refuses.
    """
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(answers.labels, answers.predicted, labels=range(len(classes)))
    if path.suffix.lower() == ".csv":
        rows = ((name, *counts) for name, counts in zip(classes, matrix.tolist(), strict=True))
        return _write_csv(path, ("class", *classes), rows)
    return write_file(path, picture(classes, matrix))


def picture(classes: Sequence[str], matrix: NDArray[Any]) -> bytes:
    """A PNG of counts ``(classes, classes)``: rows are true classes, columns predicted, colours shares of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    side = min(max(3.5, 0.45 * count + 2), 16)
    figure = Figure(figsize=(side, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = matrix / numpy.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= MOST:
        names = [name.replace("$", r"\$") for name in classes]  # a dollar sign would begin a formula
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
        for (row, column), images in numpy.ndenumerate(matrix):
            if images:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(images), ha="center", va="center", color=shade, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def check_files(confusion: Path | None, predictions: Path | None) -> None:
    """Raises SettingsError for a confusion matrix that is neither CSV nor a picture, or a file inside a registry."""
    if confusion is not None and confusion.suffix.lower() not in (".csv", ".png"):
        raise SettingsError(f"--confusion {confusion} must end in .csv or .png.")
    for path in (confusion, predictions):
        if path is not None:
            require_outside(path)


def _write_csv(path: Path, header: Sequence[str], rows: Any) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_file(path, text.getvalue().encode("utf-8", "surrogateescape"))
