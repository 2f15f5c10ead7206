"""The artifact file: what is written reads back, and what was not written by us is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from taps_registry.plugins.encodings.floats import BFloat16, Float32
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods import Delta, LayerState
from taps_registry.registry.errors import IntegrityError, PluginError, StorageError, TapsError
from taps_registry.registry.models.prices import Prices
from taps_registry.registry.store.artifact import (
    read_artifact,
    read_header,
    tensor_bytes,
    text_and_index,
    write_artifact,
)
from taps_registry.registry.store.header import Header, key
from taps_registry.registry.store.objects import ObjectStore
from taps_registry.registry.store.packed import LONGEST, WORDS, open_packed, write_packed
from taps_registry.registry.store.tensors import digest

ENCODINGS = {"fp32": Float32(), "bf16": BFloat16()}
ROLES = {
    "conv.weight": "weights",
    "conv.bias": "weights",
    "bn.weight": "norms",
    "bn.running_mean": "norms",
    "bn.num_batches_tracked": "norms",
    "fc.weight": "head",
    "fc.bias": "head",
}
INPUT = {
    "size": [3, 8, 8],
    "mean": [0.5],
    "std": [0.5],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
PLUGINS = PluginManager()
VECTORS = ("conv.bias", "bn.weight", "bn.running_mean")  # that encodings have a form of their own for


def base_tensors() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(1)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=chance),
        "conv.bias": torch.randn(4, generator=chance),
        "bn.weight": torch.ones(4),
        "bn.running_mean": torch.zeros(4),
        "bn.num_batches_tracked": torch.tensor(0),
        "fc.weight": torch.randn(10, 4, generator=chance),
        "fc.bias": torch.zeros(10),
    }


def task_tensors() -> dict[str, Tensor]:
    """Values with everything that a sloppy round trip would lose; the head has another shape than the base's."""
    chance = torch.Generator().manual_seed(2)
    values = {name: tensor + torch.randn(tensor.shape, generator=chance) for name, tensor in base_tensors().items()}
    values["bn.num_batches_tracked"] = torch.tensor(2**53 + 1)
    values["fc.weight"], values["fc.bias"] = torch.randn(3, 4, generator=chance), torch.zeros(3)
    values["conv.weight"].view(-1)[:5] = torch.tensor([-0.0, 1e-45, float("inf"), float("nan"), 3.4e38])
    return values


def write(path: Path, encoding: str = "fp32", values: dict[str, Tensor] | None = None) -> Header:
    layers = (LayerState("conv", True, 0.25), LayerState("other", False, -1e-7))
    return write_artifact(
        path,
        Delta(values or task_tensors(), layers),
        base_tensors(),
        ROLES,
        ENCODINGS[encoding],
        PLUGINS,
        base=digest(base_tensors()),
        method="taps",
        classes=("dark", "gréy", "light"),
        input=INPUT,
        extension={},
        common="",
    )


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    base = base_tensors()
    return read_artifact(path, base, digest(base), PLUGINS)


@pytest.fixture(scope="module", params=list(ENCODINGS))
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, encoding: str) -> Path:
    """An artifact that nobody changes."""
    path = tmp_path_factory.mktemp("artifact") / "artifact.safetensors"
    write(path, encoding)
    return path


# Round trips


def test_fp32_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    header = write(tmp_path / "a")
    found, tensors = read(tmp_path / "a")
    assert found == header
    assert {n: (t.dtype, t.shape) for n, t in tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in task_tensors().items()
    }
    assert digest(tensors) == digest(task_tensors())


def test_bf16_reads_back_as_the_base_plus_the_rounded_delta(tmp_path: Path) -> None:
    write(tmp_path / "a", "bf16")
    _, tensors = read(tmp_path / "a")
    base, task = base_tensors(), task_tensors()
    wanted = {
        **task,
        "conv.weight": base["conv.weight"] + (task["conv.weight"] - base["conv.weight"]).bfloat16().float(),
        **{name: task[name].bfloat16().float() for name in VECTORS},
    }
    assert digest(tensors) == digest(wanted)
    assert digest(wanted) != digest(task)


def test_bf16_halves_the_bytes_of_weights_and_norms_and_keeps_the_head(tmp_path: Path) -> None:
    write(tmp_path / "full")
    write(tmp_path / "half", "bf16")
    with open_packed(tmp_path / "full") as full, open_packed(tmp_path / "half") as half:
        for name in ROLES:
            ratio = full.tensor(name).nbytes / half.tensor(name).nbytes
            assert ratio == (2 if name in ("conv.weight", *VECTORS) else 1), name
        assert tensor_bytes(tmp_path / "half") == {name: half.tensor(name).nbytes for name in ROLES}


@pytest.mark.parametrize("name", ["bf16", "fp16", "int8", "int4", "int3", "int4+zstd"])
def test_a_variance_stays_what_it_is_nearly_and_above_zero(tmp_path: Path, name: str) -> None:
    """As a value: a delta of 1e-6 beside a base of 1000 would be lost, or come out below zero."""
    variances = torch.tensor([1e-6, 1000.0, 0.5, 3e38])
    base = {"bn.running_var": torch.tensor([1000.0, 1e-6, 1000.0, 1.0])}
    write_artifact(
        tmp_path / "a",
        Delta({"bn.running_var": variances}, ()),
        base,
        {"bn.running_var": "norms"},
        PLUGINS.encoding(name),
        PLUGINS,
        base=digest(base),
        method="taps",
        classes=("a", "b"),
        input=INPUT,
        extension={},
        common="",
    )
    found = read_artifact(tmp_path / "a", base, digest(base), PLUGINS)[1]["bn.running_var"]
    assert found.min() > 0
    if name in ("bf16", "fp16", "int8"):
        torch.testing.assert_close(found, variances, rtol=2**-8, atol=0)
    else:  # in 8 bits: to a sixteenth of the octaves that it moved
        moved, off = (variances / base["bn.running_var"]).log2(), (found / variances).log2()
        assert (off.abs() <= moved.abs() / 16 + 1e-6).all()


def test_the_header_says_what_the_artifact_is(written: Path, encoding: str) -> None:
    header = read_header(written)
    assert (header.format, header.method, header.encoding) == (1, "taps", encoding)
    assert header.base == digest(base_tensors())
    assert header.classes == ("dark", "gréy", "light")
    assert header.input == INPUT
    assert [(gate.name, gate.open, gate.score) for gate in header.layers] == [
        ("conv", True, 0.25),
        ("other", False, -1e-7),
    ]
    assert {name: entry.part for name, entry in header.tensors.items()} == ROLES
    assert header.tensors["conv.weight"].encoding == encoding
    assert header.tensors["fc.weight"].encoding == ""
    assert Header.from_json(header.to_json()) == header


def test_the_payload_foretold_is_that_of_the_file(written: Path, encoding: str) -> None:
    tensors = task_tensors()
    with open_packed(written) as file:
        found = sum(file.tensor(name).nbytes for name in file.names())
    assert sum(price.bytes for price in Prices(tensors, ROLES, ENCODINGS[encoding]).values()) == found


REWRITE = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("again", sys.argv[1])
again = importlib.util.module_from_spec(spec)
spec.loader.exec_module(again)
values = again.task_tensors()
for encoding in ("fp32", "bf16"):
    again.write(Path(sys.argv[2]) / encoding, encoding, {name: values[name] for name in reversed(values)})
"""


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """With another order of names and another seed of the hashes that sets are ordered by."""
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REWRITE, __file__, str(tmp_path)], check=True, env=environment
    )
    for encoding in ENCODINGS:
        write(tmp_path / "here", encoding)
        assert (tmp_path / "here").read_bytes() == (tmp_path / encoding).read_bytes()


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    values = task_tensors()
    values["bn.weight"][0] += 1
    write(tmp_path / "one")
    write(tmp_path / "other", values=values)
    one, other = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("one", "other"))
    assert one != other


# What is refused


def change(path: Path, edit: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Write the artifact anew with its header and tensors edited."""
    with open_packed(path) as file:
        header = json.loads(file.text)
        tensors = {name: file.tensor(name) for name in file.names()}
    edit(header, tensors)
    write_packed(path, tensors, json.dumps(header))


def entry(name: str, **values: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, tensors: header["tensors"][name].update(values)


def field(**values: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, tensors: header.update(values)


def tensor(name: str, value: Tensor) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, tensors: tensors.update({name: value})


def without(*names: str, where: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def edit(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for name in names:
            {"header": header, "entries": header["tensors"], "tensors": tensors}[where].pop(name)

    return edit


def stranger(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A changed layer that the base does not have."""
    header["tensors"]["stranger"] = header["tensors"]["conv.weight"]
    tensors["stranger"] = tensors["conv.weight"].clone()


WRONG: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], None], str]] = {
    "another base": (field(base="ab" * 32), f"belongs to the base with digest {'ab' * 32}, not to"),
    "a missing tensor": (without("bn.weight", where="tensors"), "does not match its header: bn.weight"),
    "a missing part": (entry("conv.bias", parts=["", "scale"]), "does not match its header: conv.bias::scale"),
    "an extra tensor": (tensor("extra", torch.ones(1)), "does not match its header: extra"),
    "an extra part": (tensor("conv.bias::scale", torch.ones(1)), "does not match its header: conv.bias::scale"),
    "a tensor that is not listed": (without("bn.weight", where="entries"), "does not match its header: bn.weight"),
    "a layer that the base has not": (stranger, "stranger of an artifact cannot be decoded"),
    "no parts": (lambda h, t: (entry("bn.weight", parts=[])(h, t), t.pop("bn.weight")), "bn.weight of an artifact"),
    "another shape": (tensor("conv.weight", torch.ones(4, 3, 3, 2)), "conv.weight of an artifact cannot be decoded"),
    "another shape of the head": (tensor("fc.bias", torch.ones(4)), r"fc.bias of an artifact is .*\(4,\)"),
    "another shape in the header": (entry("fc.bias", shape=[4]), r"its header says float32 \(4,\)"),
    "another dtype": (tensor("conv.weight", torch.ones(4, 3, 3, 3).double()), "cannot be decoded: expected"),
    "another dtype of the head": (tensor("fc.bias", torch.ones(3).half()), "fc.bias of an artifact is torch.float16"),
    "another dtype in the header": (entry("fc.bias", dtype="float64"), "its header says float64"),
    "a dtype that is none": (entry("fc.bias", dtype="load"), "its header says load"),
    "a dtype that is no text": (entry("fc.bias", dtype=32), "artifact"),
    "a shape that is no list": (entry("fc.bias", shape=3), "is not an artifact"),
    "a shape of texts": (entry("fc.bias", shape=["3"]), "fc.bias of an artifact"),
    "parts that are no list": (entry("fc.bias", parts=None), "is not an artifact"),
    "an encoding that is no text": (entry("conv.bias", encoding=["fp32"]), "artifact"),
    "an entry of unknown fields": (entry("fc.bias", colour="red"), "is not an artifact"),
    "an entry that is no object": (lambda h, t: h["tensors"].update({"fc.bias": 1}), "is not an artifact"),
    "a newer format": (field(format=2), r"it has format 2, this version reads 1\. Type: pip install --upgrade"),
    "an unknown format": (field(format=0), "it has the unknown format 0, this version reads 1"),
    "a format that is no number": (field(format="1"), "it has the unknown format '1', this version reads 1"),
    "no format": (without("format", where="header"), "is not an artifact"),
    **{
        f"no {name}": (without(name, where="header"), "is not an artifact")
        for name in ("classes", "extension", "common", "packages")
    },
    "a field too many": (field(colour="red"), "is not an artifact"),
    "classes that are no list": (field(classes=3), "is not an artifact"),
    "layers that are no list": (field(layers=None), "is not an artifact"),
    "a layer of unknown fields": (field(layers=[{"name": "conv", "shut": True}]), "is not an artifact"),
    "tensors that are no object": (field(tensors=["fc.bias"]), "is not an artifact"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_an_artifact_is_refused_that_has(tmp_path: Path, encoding: str, what: str) -> None:
    edit, said = WRONG[what]
    path = tmp_path / "artifact.safetensors"
    write(path, encoding)
    change(path, lambda header, tensors: None)
    read(path)
    change(path, edit)
    with pytest.raises(IntegrityError, match=said):
        read(path)


def test_an_encoding_that_is_not_installed_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    change(tmp_path / "a", entry("conv.bias", encoding="int5"))
    with pytest.raises(
        PluginError, match=r"a holds tensors in the form 'int5' of an unknown package, which was not found\. Install it"
    ):
        read(tmp_path / "a")


def test_an_artifact_read_against_another_base_is_refused(written: Path) -> None:
    base = {**base_tensors(), "conv.bias": torch.zeros(4)}
    with pytest.raises(IntegrityError, match=f"belongs to the base with digest .*, not to {digest(base)}"):
        read_artifact(written, base, digest(base), PLUGINS)


@pytest.mark.parametrize("text", ["", "null", "[]", "1", '"text"', "{}", "{", "NaN", "[" * 100_000, "9" * 5000])
def test_a_header_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    write_packed(tmp_path / "a", {"a": torch.ones(1)}, text)
    with pytest.raises(IntegrityError, match="is not an artifact of this registry"):
        read(tmp_path / "a")


SMALL: dict[str, Tensor] = {
    "half": torch.randn(3, 5).half(),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "count": torch.tensor(41),
    "none": torch.empty(0, 4),
    "truth": torch.tensor([True, False]),
    "eighth": torch.randn(9).to(torch.float8_e4m3fn),
    "odd": torch.randn(1, 3, 3)[:, :, 1],
}


def test_small_tensors_lie_end_to_end_and_come_back(tmp_path: Path) -> None:
    tensors = {**SMALL, "large": torch.randn(200, 100)}
    write_packed(tmp_path / "a", tensors, "{}")
    assert set(load_file(tmp_path / "a")) == {"large", "::small"}
    with open_packed(tmp_path / "a") as file:
        assert file.text == "{}"
        assert digest({name: file.tensor(name) for name in file.names()}) == digest(tensors)
        assert all(file.tensor(name).data_ptr() % 8 == 0 for name in tensors)


def test_a_file_may_have_no_small_tensors(tmp_path: Path) -> None:
    write_packed(tmp_path / "a", {"large": torch.randn(200, 100)}, "{}")
    assert set(load_file(tmp_path / "a")) == {"large", "::small"}
    with open_packed(tmp_path / "a") as file:
        assert file.names() == {"large"}


def taken_apart(path: Path) -> tuple[str, list[Any], bytes]:
    """A file's text, its list of small tensors, and their bytes."""
    inflater = zlib.decompressobj(zdict=WORDS)
    text, listed = inflater.decompress(bytes(load_file(path)["::small"].numpy())).decode().split("\n")
    return text, json.loads(listed), inflater.unused_data


def put_together(path: Path, text: str, listed: list[Any], small: bytes) -> None:
    deflater = zlib.compressobj(zdict=WORDS)
    bundle(deflater.compress(f"{text}\n{json.dumps(listed)}".encode()) + deflater.flush() + small)(path)


def bundle(raw: bytes) -> Callable[[Path], None]:
    """Replaces the text and the small tensors of a file."""
    made = torch.tensor(list(raw), dtype=torch.uint8)
    return lambda path: save_file({**load_file(path), "::small": made}, path)


def text(edit: Callable[[str, list[Any]], str]) -> Callable[[Path], None]:
    """Changes the text of a file, given the list of small tensors, in place or to something else."""

    def change_it(path: Path) -> None:
        header, listed, small = taken_apart(path)
        put_together(path, edit(header, listed), listed, small)

    return change_it


def listing(edit: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """Changes the list of small tensors in a file."""

    def change_it(header: str, small: list[Any]) -> str:
        edit(small)
        return header

    return text(change_it)


def exchanged(listed: list[Any], length: float) -> None:
    """Gives one small tensor this length and a new one the rest, so that the sum of their bytes stays."""
    _, dtype, shape = next(one for one in listed if one[1] == "float32")
    values = math.prod(shape)
    shape[:] = [length]
    listed.insert(0, ["more", dtype, [values - length]])


DAMAGED: dict[str, Callable[[Path], None]] = {
    "a tensor more": listing(lambda listed: listed.append(["more", "float32", [1]])),
    "a tensor fewer": listing(lambda listed: listed.pop()),
    "a dtype that is none": listing(lambda listed: listed[0].__setitem__(1, "save")),
    "a larger shape": listing(lambda listed: listed[0].__setitem__(2, [10**6])),
    "a negative shape": listing(lambda listed: listed[0].__setitem__(2, [-1])),
    "a negative shape that makes up for a larger one": listing(lambda listed: exchanged(listed, -4)),
    "a shape that makes up for a larger one by its fraction": listing(lambda listed: exchanged(listed, 0.5)),
    "a shape beyond 64 bits": listing(lambda listed: listed.append(["more", "float32", [2**62, 2**62, 0]])),
    "a name twice": listing(lambda listed: listed.append([listed[0][0], "float32", [0]])),
    "no list": listing(lambda listed: listed.clear()),
    "a bundle of another kind": lambda path: save_file({**load_file(path), "::small": torch.ones(4)}, path),
    "no bundle": lambda path: save_file({"fc.bias": torch.ones(4)}, path),
    "an empty bundle": bundle(b""),
    "text that is not compressed": bundle(b"text"),
    "text that is compressed otherwise": lambda path: bundle(zlib.compress(taken_apart(path)[0].encode()))(path),
    "text of too many bytes": text(lambda header, small: header + " " * LONGEST),
    "text that is cut off": lambda path: bundle(bytes(load_file(path)["::small"].numpy())[:50])(path),
}


def test_text_may_be_changed_to_what_means_the_same(tmp_path: Path) -> None:
    """Else it is not the damage that is refused below."""
    write(tmp_path / "a")
    text(lambda header, small: header + " " * 1000)(tmp_path / "a")
    assert digest(read(tmp_path / "a")[1]) == digest(task_tensors())


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_bundle_is_refused_that_has(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "a")
    DAMAGED[damage](tmp_path / "a")
    with pytest.raises(IntegrityError, match=r"is not an artifact of this registry|does not match its header"):
        read(tmp_path / "a")


def test_a_file_is_read_without_the_package_as_documented(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = (Path(__file__).parents[3] / "docs/artifact-format.md").read_text(encoding="utf-8")
    example = described.partition("without the package:\n\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(written.parent)
    found: dict[str, Any] = {}
    exec(compile(example, "artifact-format.md", "exec"), found)
    with open_packed(written) as file:
        assert digest(found["tensors"]) == digest({name: file.tensor(name) for name in file.names()})
        assert found["header"] == json.loads(file.text)


def test_a_file_of_three_classes_says_what_it_is_in_a_hundredth_of_its_tensors(tmp_path: Path) -> None:
    head = {"fc.weight": torch.randn(3, 2048), "fc.bias": torch.randn(3)}
    layers = tuple(LayerState(f"layer{index}.conv", open=False) for index in range(54))
    about = {"base": hashlib.sha256().hexdigest(), "method": "head-only", "classes": ("dark", "grey", "light")}
    shape = {"size": [3, 192, 192], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    shown = {**shape, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"}
    path, roles = tmp_path / "a", dict.fromkeys(head, "head")
    write_artifact(
        path,
        Delta(head, layers),
        head,
        roles,
        ENCODINGS["fp32"],
        PLUGINS,
        input=shown,
        extension={},
        common="",
        **about,
    )
    tensors = sum(tensor.nbytes for tensor in head.values())
    assert tensors < path.stat().st_size < 1.01 * tensors
    assert read_header(path).layers == ()


def test_what_is_beside_the_tensors_takes_no_more_than_foretold(written: Path) -> None:
    header = read_header(written)
    with open_packed(written) as file:
        sizes = {
            name: sum(file.tensor(key(name, part)).nbytes for part in entry.parts)
            for name, entry in header.tensors.items()
        }
    text, each = text_and_index(header, sizes)
    beside = written.stat().st_size - sum(sizes.values())
    assert beside / 3 < text + sum(each.values())
    assert beside <= text + sum(each.values())


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\0" * 8, b"\xff" * 8, b"\xff" * 100, b"PK\3\4" * 100, b"\2" + b"\0" * 7 + b"{}"]
)
def test_a_file_that_is_no_safetensors_of_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(IntegrityError, match="is not an artifact of this registry"):
        read(tmp_path / "a")


def test_an_artifact_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(IntegrityError, match="is not an artifact of this registry"):
            read(path)


def test_an_artifact_cut_short_anywhere_is_refused(tmp_path: Path, written: Path) -> None:
    whole = written.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for length in {0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, len(whole) // 2, len(whole) - 1}:
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            read(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole + b"\0")
    with pytest.raises(IntegrityError):
        read(tmp_path / "a")


def test_a_disk_that_refuses_the_artifact_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Nothing was changed"):
        write(tmp_path / "nowhere" / "a")


# Damage by chance


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=300, deadline=None, database=None)
@given(data=st.data())
def test_a_header_damaged_anywhere_reads_back_or_is_refused(data: st.DataObject, written: Path, scratch: Path) -> None:
    content = bytearray(written.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3), "bytes changed")):
        content[data.draw(st.integers(0, start - 1), "at")] = data.draw(st.integers(0, 255), "to")
    kept = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), "bytes kept")
    (scratch / "a").write_bytes(content[:kept])
    try:
        header, tensors = read(scratch / "a")
    except TapsError:
        return
    assert asdict(header)["tensors"].keys() == tensors.keys()


@settings(max_examples=300, deadline=None, database=None)
@given(data=st.data())
def test_a_header_of_strange_values_reads_back_or_is_refused(data: st.DataObject, written: Path, scratch: Path) -> None:
    """Valid JSON this time, with one value exchanged for another kind of value."""
    strange = st.sampled_from([None, True, 0, -1, 0.5, "", "x", [], ["x"], [[]], {}, {"x": 1}, 10**30, "float16"])
    path = scratch / "a"
    path.write_bytes(written.read_bytes())

    def edit(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        place: Any = header
        while True:
            step = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))), "at")
            if not (isinstance(place[step], dict | list) and place[step] and data.draw(st.booleans(), "deeper")):
                place[step] = data.draw(strange, "to")
                return
            place = place[step]

    change(path, edit)
    try:
        header, tensors = read(path)
    except TapsError:
        return
    assert header.tensors.keys() == tensors.keys()


LENGTHS = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from([-4, -1, 0, 1, 4, 0.5, True, None, "4", [4], 2**63]))
LISTED = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(["conv.bias", "fc.bias", "more", "::small", ""]), st.none(), st.integers()),
        st.one_of(st.sampled_from(["float32", "uint8", "bool", "complex64", "qint8", "Tensor", "save"]), st.none()),
        st.one_of(st.lists(LENGTHS, max_size=4), LENGTHS),
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None, database=None)
@given(listed=LISTED, kept=st.booleans(), moved=st.integers(-(2**65), 2**65))
@example(listed=[(None, "float32", [0])], kept=True, moved=0)
def test_any_list_of_small_tensors_reads_back_or_is_refused(
    listed: list[Any], kept: bool, moved: int, written: Path, scratch: Path
) -> None:
    """Alone, or beside the right ones of which one gives bytes to another."""
    path = scratch / "a"
    path.write_bytes(written.read_bytes())
    text, right, small = taken_apart(path)
    if kept:
        exchanged(right, moved)
    put_together(path, text, [*right, *listed] if kept else listed, small)
    try:
        header, tensors = read(path)
    except IntegrityError:
        return
    assert header.tensors.keys() == tensors.keys()


def test_the_store_notices_any_byte_that_changed(tmp_path: Path, written: Path) -> None:
    store = ObjectStore(tmp_path)
    stored = store.put(written)
    path = store.get(stored.digest)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="is damaged"):
            store.get(stored.digest)
    path.write_bytes(content)
    assert store.get(stored.digest) == path
