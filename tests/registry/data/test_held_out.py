"""What a finished task is measured on: never what it was trained with, unless that is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from image_folders import CLASSES, make_class, make_folders, make_splits

from taps_registry.registry.data.held_out import HeldOut, Trained, open_held_out
from taps_registry.registry.data.splits import open_data
from taps_registry.registry.errors import DataError, SettingsError

STRANGER = Trained({})


def trained_on(data: Path, **settings: Any) -> Trained:
    return Trained({"data": str(data), "seed": 3, **settings}, open_data(str(data), seed=3, **settings).fingerprint)


def measured(data: Path, trained: Trained = STRANGER, split: str = "") -> HeldOut:
    return open_held_out(str(data), CLASSES, trained, split)


def test_the_test_split_comes_first(tmp_path: Path) -> None:
    make_folders(tmp_path / "train", count=3, seed=1)
    make_folders(tmp_path / "val", count=4, seed=2)
    make_folders(tmp_path / "test", count=2, seed=3)
    found = measured(tmp_path)
    assert (found.split, len(found.samples)) == ("test", 6)
    assert len(measured(tmp_path, split="val").samples) == 12
    assert len(measured(tmp_path, split="train").samples) == 9
    assert len(measured(tmp_path, split="all").samples) == 27


def test_without_test_images_the_validation_images_are_taken(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    assert measured(tmp_path).split == "val"


def test_training_images_are_taken_only_if_that_is_asked_for(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train"])
    with pytest.raises(DataError, match=r"training images only.*--split train"):
        measured(tmp_path)
    assert len(measured(tmp_path, split="train").samples) == 12


def test_a_split_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "test"])
    with pytest.raises(DataError, match="no images for --split val, only for test and train"):
        measured(tmp_path, split="val")
    with pytest.raises(SettingsError, match="--split must be one of test, val, train, all, got 'dev'"):
        measured(tmp_path, split="dev")


def test_class_folders_elsewhere_are_measured_whole(tmp_path: Path) -> None:
    trained = trained_on(make_folders(tmp_path / "old", count=4))
    found = measured(make_folders(tmp_path / "new", ["light"], count=2, seed=7), trained)
    assert (found.split, [sample.label for sample in found.samples]) == ("all", [2, 2])


@pytest.mark.parametrize("moved", [False, True])
def test_of_the_class_folders_that_a_task_was_trained_with_its_own_test_split_is_taken(
    tmp_path: Path, moved: bool
) -> None:
    folder = make_folders(tmp_path / "data", count=10)
    trained = trained_on(folder)
    expected = {sample.name for sample in open_data(str(folder), seed=3).test}
    if moved:
        folder = folder.rename(tmp_path / "moved")
    found = measured(folder, trained)
    assert found.split == "test"
    assert {sample.name for sample in found.samples} == expected
    assert len(measured(folder, trained, "train").samples) == 18
    assert len(measured(folder, trained, "val").samples) == 30 - 18 - len(expected)
    assert len(measured(folder, trained, "all").samples) == 30


def test_a_split_that_a_run_made_is_known(tmp_path: Path) -> None:
    """A validation set that was taken from train/ is held out, and not trained on."""
    make_splits(tmp_path, ["train"], count=10)
    make_folders(tmp_path / "test", count=1, seed=5)
    trained = trained_on(tmp_path)
    val = open_data(str(tmp_path), seed=3).val
    assert {s.file for s in measured(tmp_path, trained, "val").samples} == {s.file for s in val}


def test_the_training_folder_by_itself_is_not_measured_on(tmp_path: Path) -> None:
    trained = trained_on(make_splits(tmp_path, ["train", "val"]))
    with pytest.raises(DataError, match="training images only"):
        measured(tmp_path / "train", trained)
    assert len(measured(tmp_path / "train", trained, "train").samples) == 12


def test_links_to_training_images_are_not_measured_on(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", count=10)
    trained = trained_on(folder)
    view = tmp_path / "view"
    for name in CLASSES:
        (view / name).mkdir(parents=True)
        for file in (folder / name).iterdir():
            (view / name / file.name).symlink_to(file)
    assert {s.file for s in measured(view, trained).samples} == {s.file for s in measured(folder, trained).samples}


def test_new_images_beside_known_ones_are_measured_as_test_images(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", count=10)
    trained = trained_on(folder)
    view = tmp_path / "view"
    view.mkdir()
    (view / "grey").symlink_to(folder / "grey")
    make_class(view / "light", 4, seed=9)
    found = measured(view, trained)
    assert found.split == "test"
    assert sum(sample.label == 2 for sample in found.samples) == 4


def test_images_that_have_changed_since_are_not_guessed_at(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", count=10)
    trained = trained_on(folder)
    make_class(tmp_path / "more", 1, seed=8)
    shutil.move(tmp_path / "more" / "0.png", folder / "grey" / "new.png")
    with pytest.raises(DataError, match=r"not known which of them it has seen.*--split all"):
        measured(folder, trained)
    assert len(measured(folder, trained, "all").samples) == 31


def test_unreadable_images_that_the_run_skipped_are_skipped_again(tmp_path: Path) -> None:
    folder = make_folders(tmp_path / "data", count=10)
    (folder / "grey" / "0.png").write_text("no image")
    found = measured(folder, trained_on(folder, skip_bad_images=True))
    assert "grey/0.png" not in {sample.name for sample in found.samples}
    with pytest.raises(DataError, match=r"^grey/0\.png: not an image"):
        measured(folder)


def test_a_class_that_the_task_does_not_know_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has zebra, which the task does not know\."):
        measured(make_folders(tmp_path, ["dark", "zebra"]))


def test_training_images_are_not_read_again_for_a_split_of_its_own(tmp_path: Path) -> None:
    trained = trained_on(make_splits(tmp_path, ["train", "val", "test"]))
    (tmp_path / "train" / "grey" / "0.png").write_text("no image any more")
    assert (measured(tmp_path, trained).split, len(measured(tmp_path, trained).samples)) == ("test", 12)
    assert len(measured(tmp_path, trained, "val").samples) == 12
