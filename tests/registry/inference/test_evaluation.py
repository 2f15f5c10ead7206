"""What evaluate reports, and what it writes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner
from image_folders import CLASSES, make_folders, make_splits
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, classification_report, f1_score

from taps_registry import Registry
from taps_registry.cli.main import main
from taps_registry.cli.session import Session
from taps_registry.registry.data.held_out import HeldOut
from taps_registry.registry.data.samples import Sample
from taps_registry.registry.errors import DataError, SettingsError
from taps_registry.registry.inference.evaluation import Answers, evaluate, picture
from taps_registry.registry.inference.task_model import TaskModel
from taps_registry.registry.records import Evaluation

QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8, "method": "head-only"}


def scored(labels: list[int], predicted: list[int], classes: tuple[str, ...]) -> Evaluation:
    """An evaluation of these answers."""
    count = len(labels)
    answers = Answers(numpy.array(labels), numpy.array(predicted), numpy.ones(count, "float32"), numpy.ones(count))
    task = TaskModel("t", 1, None, classes, None)  # type: ignore[arg-type]  # neither is asked
    return evaluate(task, HeldOut("test", tuple(Sample("", label, bytes) for label in labels)), answers)


def test_scores_are_those_of_scikit_learn() -> None:
    chance = numpy.random.default_rng(0)
    labels, predicted = chance.integers(0, 4, (2, 200)).tolist()
    found = scored(labels, predicted, ("a", "b", "c", "d"))
    expected = classification_report(labels, predicted, target_names=list("abcd"), output_dict=True)
    assert found.accuracy == pytest.approx(expected["accuracy"])
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    for one in found.classes:
        row = expected[one.name]
        assert (one.precision, one.recall, one.f1) == pytest.approx((row["precision"], row["recall"], row["f1-score"]))
        assert one.images == row["support"]


def test_classes_without_images_are_left_out_of_the_averages() -> None:
    found = scored([0, 0, 1, 1], [0, 2, 1, 1], ("a", "b", "c"))
    assert found.balanced_accuracy == pytest.approx((0.5 + 1) / 2)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert [one.images for one in found.classes] == [2, 2, 0]
    assert found.classes[2].recall == 0


def test_a_class_that_is_never_right_has_scores_of_nought() -> None:
    found = scored([0, 1], [1, 0], ("a", "b"))
    assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (0, 0, 0)


def test_the_picture_of_many_classes_has_no_names(tmp_path: Path) -> None:
    for count in (2, 200):
        drawn = Image.open(io.BytesIO(picture([f"${n}$" for n in range(count)], numpy.eye(count, dtype=int))))
        assert drawn.format == "PNG"
        assert drawn.width == drawn.height


@pytest.fixture
def data(registry: Registry, tmp_path: Path) -> Path:
    """Splits that the task ``cars`` was trained with."""
    folder = make_splits(tmp_path / "data", ["train", "val"], count=6)
    registry.add_task("cars", "base", folder, **QUICK)
    return folder


def test_evaluate_says_which_split_it_measured(registry: Registry, data: Path) -> None:
    found = registry.evaluate("cars", data)
    assert (found.split, found.images) == ("val", 18)
    assert found.accuracy == registry.task("cars").metrics["val/accuracy"]
    assert registry.evaluate("cars", data, split="train").images == 18
    with pytest.raises(DataError, match="training images only"):
        registry.evaluate("cars", data / "train")


def test_predictions_and_the_confusion_matrix_say_the_same(registry: Registry, data: Path, tmp_path: Path) -> None:
    files = {"predictions": tmp_path / "p.csv", "confusion": tmp_path / "c.csv"}
    found = registry.evaluate("cars", data, **files)
    rows = list(csv.DictReader(io.StringIO(files["predictions"].read_text())))
    assert [row["image"] for row in rows[:2]] == ["dark/0.png", "dark/1.png"]
    assert sum(row["class"] == row["predicted"] for row in rows) / len(rows) == found.accuracy
    assert rows[0]["predicted"] == registry.predict("cars", [data / "val" / "dark" / "0.png"])[0].label
    header, *matrix = csv.reader(io.StringIO(files["confusion"].read_text()))
    assert header == ["class", *CLASSES]
    for name, *counts in matrix:
        of_class = [row["predicted"] for row in rows if row["class"] == name]
        assert [int(count) for count in counts] == [of_class.count(other) for other in CLASSES]


def test_the_confusion_matrix_may_be_a_picture(registry: Registry, data: Path, tmp_path: Path) -> None:
    registry.evaluate("cars", data, confusion=tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.format == "PNG"


def test_another_ending_of_the_confusion_matrix_is_refused_before_anything_is_read(registry: Registry) -> None:
    with pytest.raises(SettingsError, match=r"--confusion c\.pdf must end in \.csv or \.png"):
        registry.evaluate("nothing", "nowhere", confusion="c.pdf")


def test_the_command_shows_averages_and_classes(registry: Registry, data: Path) -> None:
    shown = CliRunner().invoke(
        main, ["evaluate", "cars", "--data", str(data), "--home", str(registry.home)], obj=Session()
    )
    assert shown.exit_code == 0, shown.output
    for word in ("val", "accuracy", "balanced", "macro F1", "precision", "recall", *CLASSES):
        assert word in shown.stdout


def test_notes_on_the_images_are_shown(registry: Registry, data: Path) -> None:
    make_folders(data / "test", ["dark"])
    (data / "test" / "dark" / "x.heic").touch()
    shown = CliRunner().invoke(
        main, ["evaluate", "cars", "--data", str(data), "--home", str(registry.home)], obj=Session()
    )
    assert "Left out 1 file in" in shown.stderr
    assert "1 .heic" in shown.stderr
