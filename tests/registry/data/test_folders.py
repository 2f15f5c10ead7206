"""Folders of images as people have them: what is a class, what is an image, what is passed over."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from image_folders import CLASSES, make_class, make_folders, make_splits, names
from PIL import Image

from taps_registry.registry.data.folders import read_folders
from taps_registry.registry.data.sources import absolute, read_source
from taps_registry.registry.data.splits import open_data
from taps_registry.registry.errors import DataError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


# Classes


def test_the_top_level_folders_are_the_classes_whatever_lies_below_them(tmp_path: Path) -> None:
    for below in ("indoor", "outdoor/day", "outdoor/night"):
        make_class(tmp_path / "cats" / below, 1, 1)
        make_class(tmp_path / "dogs" / below, 2, 2)
    found = read_folders(tmp_path)
    assert found.classes == ("cats", "dogs")
    assert [sample.label for sample in found.samples] == [0] * 3 + [1] * 6
    assert names(found.samples)[:3] == ["cats/indoor/0.png", "cats/outdoor/day/0.png", "cats/outdoor/night/0.png"]


def test_classes_have_one_order_in_every_process(tmp_path: Path) -> None:
    make_folders(tmp_path, ["b", "1", "01", "001", "a10", "a9", "Z", "é"], count=1)
    script = "from taps_registry.registry.data.folders import read_folders as r; from pathlib import Path; "
    script += f"print(r(Path({str(tmp_path)!r})).classes)"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    orders = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in range(3)
    }
    assert orders == {"('001', '01', '1', 'a9', 'a10', 'b', 'Z', 'é')"}


def test_the_order_of_classes_does_not_depend_on_the_order_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(tmp_path, ["a", "1", "01", "Ä", "ä1", "b"], count=3)
    expected = read_folders(tmp_path)
    scan = os.scandir

    class Shuffled:
        def __init__(self, path: object) -> None:
            with scan(path) as entries:
                self.entries = list(entries)
            random.Random(str(path)).shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    found = read_folders(tmp_path)
    assert found.classes == expected.classes
    assert names(found.samples) == names(expected.samples)


def test_names_that_differ_in_unicode_form_only_are_one_class(tmp_path: Path) -> None:
    make_class(tmp_path / "train" / COMPOSED, 2, 1)
    make_class(tmp_path / "train" / "tea", 2, 2)
    make_class(tmp_path / "val" / DECOMPOSED, 1, 3)
    make_class(tmp_path / "val" / "tea", 1, 4)
    data = open_data(str(tmp_path))
    assert data.classes == (COMPOSED, "tea")
    assert [sample.label for sample in data.val] == [0, 1]
    assert data.notes == ()


def test_a_class_has_the_same_name_and_fingerprint_in_any_unicode_form(tmp_path: Path) -> None:
    for place, name in (("a", COMPOSED), ("b", DECOMPOSED)):
        make_class(tmp_path / place / name / name, 4, 1)
        make_class(tmp_path / place / "tea", 4, 2)
    first, second = (open_data(str(tmp_path / place)) for place in "ab")
    assert first.classes == second.classes == (COMPOSED, "tea")
    assert first.fingerprint == second.fingerprint


def test_names_that_differ_in_case_only_are_one_class_and_a_note(tmp_path: Path) -> None:
    make_folders(tmp_path, ["Cat", "cat", "dog"], count=3)
    found = read_folders(tmp_path)
    assert found.classes == ("Cat", "dog")
    assert [sample.label for sample in found.samples] == [0] * 6 + [1] * 3
    (note,) = found.notes
    assert note.startswith(f"Cat and cat in {tmp_path} differ in case only and are taken as one class, Cat.")


def test_a_split_may_write_a_class_in_another_case(tmp_path: Path) -> None:
    make_folders(tmp_path / "train", ["Cat", "dog"])
    make_folders(tmp_path / "val", ["cat", "Dog"], seed=1)
    data = open_data(str(tmp_path))
    assert data.classes == ("Cat", "dog")
    assert {sample.label for sample in data.val} == {0, 1}


def test_a_class_folder_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "grey").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(DataError, match=r"not UTF-8: caf\\xe9\. Rename it\."):
        read_folders(tmp_path)


def test_an_image_whose_name_is_not_utf_8_is_an_image(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "grey" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/grey/caf\xe9.png"))
    data = open_data(str(tmp_path))
    assert len(data.train) + len(data.val) + len(data.test) == 12
    assert data.fingerprint == open_data(str(tmp_path)).fingerprint


# What is an image, and what is passed over


@pytest.mark.parametrize("ending", ["JPG", "jpeg", "jfif", "webp", "tif", "TIFF", "bmp", "gif", "png", "ppm", "jp2"])
def test_every_ending_of_an_image_counts(tmp_path: Path, ending: str) -> None:
    make_folders(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "grey" / f"photo.{ending}")
    assert f"grey/photo.{ending}" in names(read_folders(tmp_path).samples)


def test_other_files_are_counted_by_their_endings(tmp_path: Path) -> None:
    make_folders(tmp_path)
    for name in ("a.txt", "b.TXT", "c.heic", "no_ending"):
        (tmp_path / "grey" / name).write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    assert read_folders(tmp_path).notes == (
        f"Left out 5 files in {tmp_path} other than images: 2 .txt, 1 without an ending, 1 .csv, 1 .heic.",
    )


LEFT_BEHIND = [
    ".DS_Store",
    "._0.png",
    ".hidden.png",
    "Thumbs.db",
    "desktop.ini",
    "Icon\r",
    "~$0.png",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".thumbnails/0.png",
    ".git/0.png",
    "__MACOSX/0.png",
    "__pycache__/0.png",
    "@eaDir/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/0.png",
    "lost+found/0.png",
]


@pytest.mark.parametrize("where", [".", "grey", "grey/deeper"])
@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_programs_leave_behind_is_passed_over(tmp_path: Path, name: str, where: str) -> None:
    make_folders(tmp_path, count=1)
    litter = tmp_path / where / name
    litter.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "dark" / "0.png", litter)
    found = read_folders(tmp_path)
    assert found.classes == CLASSES
    assert names(found.samples) == [f"{name}/0.png" for name in CLASSES]
    assert found.notes == ()


def test_litter_beside_splits_is_passed_over(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    for name in ("__MACOSX", ".cache"):
        make_splits(tmp_path / name, ["train"])
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.val), data.notes) == (12, 12, ())


def test_images_outside_of_class_folders_are_a_note(tmp_path: Path) -> None:
    make_folders(tmp_path)
    shutil.copy(tmp_path / "dark" / "0.png", tmp_path / "loose.png")
    found = read_folders(tmp_path)
    assert found.notes == (f"Left out 1 image in {tmp_path} outside of class folders.",)
    assert len(found.samples) == 12


def test_a_folder_of_images_only_is_an_error(tmp_path: Path) -> None:
    make_class(tmp_path / "flat", 3, 0)
    with pytest.raises(DataError, match="has no class folders, only images"):
        read_folders(tmp_path / "flat")


def test_a_class_folder_without_images_is_an_error_that_says_what_is_in_it(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "zebra").mkdir()
    (tmp_path / "zebra" / "1.heic").write_text("no image")
    with pytest.raises(DataError, match=r"classes without images: zebra \(1 \.heic\)"):
        open_data(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make_folders(tmp_path)
    os.mkfifo(tmp_path / "grey" / "pipe.png")
    assert len(read_folders(tmp_path).samples) == 12


# Links


def test_links_in_circles_are_followed_once(tmp_path: Path) -> None:
    make_folders(tmp_path, count=2)
    (tmp_path / "grey" / "up").symlink_to(tmp_path)
    (tmp_path / "grey" / "again").symlink_to(tmp_path / "grey")
    (tmp_path / "current").symlink_to(".")
    (tmp_path / "itself").symlink_to("itself")
    found = read_folders(tmp_path)
    assert found.classes == CLASSES
    assert names(found.samples) == [f"{name}/{number}.png" for name in CLASSES for number in range(2)]


def test_an_image_is_taken_once_and_under_its_own_name(tmp_path: Path) -> None:
    make_folders(tmp_path, count=2)
    (tmp_path / "grey" / "00.png").symlink_to("0.png")
    (tmp_path / "grey" / "a").symlink_to("b")
    make_class(tmp_path / "grey" / "b", 1, 9)
    grey = [sample.name for sample in read_folders(tmp_path).samples if sample.label == 1]
    assert grey == ["grey/0.png", "grey/1.png", "grey/b/0.png"]


def test_a_class_folder_may_be_a_link_or_hold_links(tmp_path: Path) -> None:
    make_class(tmp_path / "pool", 3, 0)
    data = make_folders(tmp_path / "data", count=1)
    (data / "far").symlink_to(tmp_path / "pool")
    (data / "near").mkdir()
    (data / "near" / "1.png").symlink_to(tmp_path / "pool" / "1.png")
    found = read_folders(data)
    assert names(found.samples) == [
        *("dark/0.png", "far/0.png", "far/1.png", "far/2.png"),
        *("grey/0.png", "light/0.png", "near/1.png"),
    ]


def test_a_link_to_a_class_folder_beside_is_no_second_class(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "aardvark").symlink_to("grey")
    assert read_folders(tmp_path).classes == CLASSES


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "grey" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"^grey/gone\.png: No such file or directory\. Fix or delete it, or skip it"):
        open_data(str(tmp_path))


# Splits or classes


def test_a_folder_called_like_a_split_beside_class_folders_is_a_class(tmp_path: Path) -> None:
    make_folders(tmp_path, ["bus", "car", "train"])
    found = read_source(str(tmp_path))
    assert found["all"].classes == ("bus", "car", "train")
    (note,) = found["all"].notes
    assert note == (
        f"train in {tmp_path} taken for classes, since there are others beside. If they are splits: "
        f"--data {tmp_path}/train"
    )


def test_a_class_called_train_may_have_folders_below_it(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        make_folders(tmp_path / name, ["indoor", "outdoor"])
    assert read_source(str(tmp_path))["all"].classes == ("bus", "train")


def test_splits_beside_another_folder_of_images_stay_splits_and_say_so(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    make_class(tmp_path / "unlabelled", 2, 9)
    data = open_data(str(tmp_path))
    assert data.classes == CLASSES
    (note,) = data.notes
    assert note.startswith(f"unlabelled in {tmp_path} left out: read as splits")
    assert note.endswith(f"--data classes@{tmp_path}")


def test_splits_beside_folders_without_images_are_splits(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert open_data(str(tmp_path)).notes == ()


def test_which_way_a_folder_is_read_can_be_said(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val"])
    assert read_source(f"classes@{tmp_path}")["all"].classes == ("train", "val")
    make_class(tmp_path / "bus", 2, 9)
    assert set(read_source(f"splits@{tmp_path}")) == {"train", "val"}


def test_two_folders_for_one_split_are_a_note(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "val", "validation"])
    data = open_data(str(tmp_path))
    assert len(data.val) == 12
    assert data.notes == (
        f"{tmp_path}/validation left out: the val images are taken from {tmp_path}/val. To take the others: "
        f"--val-data {tmp_path}/validation",
    )


def test_a_path_means_the_same_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    assert absolute("d") == str(tmp_path / "d")
    assert absolute("classes@d") == f"classes@{tmp_path / 'd'}"
    assert absolute("torch/mnist@d") == f"torch/mnist@{tmp_path / 'd'}"
    assert absolute("hfds/mnist") == "hfds/mnist"
    assert absolute("") == ""
