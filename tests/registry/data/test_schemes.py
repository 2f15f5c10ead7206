"""Data sets of timm's, and what else ``--data`` may be."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy
import pytest
from image_folders import CLASSES, make_folders, make_splits

from taps_registry.registry.data.splits import open_data
from taps_registry.registry.errors import DataError


def test_a_tar_is_refused_with_what_to_do_about_it(tmp_path: Path) -> None:
    """timm would decode other images in place of unreadable ones, and mix them up between threads."""
    make_folders(tmp_path / "data")
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        tar.add(tmp_path / "data", "data")
    with pytest.raises(DataError, match=r"data\.tar is a file; unpack it, and name the folder"):
        open_data(str(tmp_path / "data.tar"))


def test_timms_image_folder_scheme_finds_the_splits(tmp_path: Path) -> None:
    make_splits(tmp_path, ["train", "test"], count=10)
    data = open_data(f"torch/image_folder@{tmp_path}")
    assert data.classes == CLASSES
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 30)


def test_timms_image_folder_scheme_does_not_test_on_what_it_trains_on(tmp_path: Path) -> None:
    """timm gives the whole folder for every split that it does not find."""
    make_folders(tmp_path, count=10)
    data = open_data(f"torch/image_folder@{tmp_path}")
    trained = {sample.image().tobytes() for sample in data.train}
    assert not [sample.name for sample in data.test if sample.image().tobytes() in trained]


def test_timms_image_folder_scheme_works_without_test_images(tmp_path: Path) -> None:
    data = open_data(f"torch/image_folder@{make_splits(tmp_path, ['train', 'val'], count=10)}")
    assert data.classes == CLASSES
    assert not data.test


def write_idx(path: Path, values: numpy.ndarray) -> None:
    """An array of bytes in the format of the MNIST files."""
    path.write_bytes(
        struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    )


def test_timms_mnist_scheme_keeps_its_test_images_for_testing(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    chance = numpy.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 10)):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", chance.integers(0, 256, (count, 28, 28), dtype="uint8"))
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", numpy.arange(count, dtype="uint8") % 10)
    data = open_data(f"torch/mnist@{tmp_path}")
    assert len(data.classes) == 10
    assert data.classes[3].startswith("3")
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    assert data.test[7].label == 7
    assert data.test[7].image().mode == "RGB"
    assert data.test[7].image().size == (28, 28)


def test_a_scheme_without_its_files_is_an_error_that_says_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot open the train split of torch/mnist@{tmp_path}: Dataset not found"):
        open_data(f"torch/mnist@{tmp_path}")


def test_an_unknown_scheme_is_an_error_that_lists_the_schemes() -> None:
    with pytest.raises(DataError, match=r"no folder nosuch/mnist@/tmp\. .*torch, hfds, hfids, tfds, wds"):
        open_data("nosuch/mnist@/tmp")


def test_an_unknown_data_set_of_a_known_scheme_is_an_error() -> None:
    with pytest.raises(DataError, match="Unknown torchvision dataset nosuch"):
        open_data("torch/nosuch@/tmp")


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_that_can_only_be_iterated_is_read_once(images: Path, tmp_path: Path) -> None:
    """timm's ``wds`` scheme: tar shards, and a file that says which split they are."""
    splits = {}
    for split, numbers in {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}.items():
        shard = tmp_path / f"{split}.tar"
        with tarfile.open(shard, "w") as archive:
            for label, name in enumerate(("dark", "grey", "light")):
                for number in numbers:
                    for ending, content in (
                        ("png", (images / name / f"{number}.png").read_bytes()),
                        ("cls", str(label).encode()),
                    ):
                        member = tarfile.TarInfo(f"{label}{number:03d}.{ending}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
        size = 3 * len(numbers)
        splits[split] = {
            "name": split,
            "filenames": [shard.name],
            "num_samples": size,
            "shard_lengths": [size],
            "alt_label": "",
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    found = open_data(f"wds/shapes@{tmp_path}")
    assert found.classes == ("0", "1", "2")
    assert [len(split) for split in (found.train, found.val, found.test)] == [18, 9, 9]
    assert sorted(sample.label for sample in found.test) == [0] * 3 + [1] * 3 + [2] * 3
    assert found.train[0].image().size == (32, 32)
    assert found.fingerprint == open_data(f"wds/shapes@{tmp_path}").fingerprint
