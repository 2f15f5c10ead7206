"""Encodings with ``+zstd``: the same bits in fewer bytes, and nothing but an error from what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taps_registry.plugins.encodings import COMPRESSED, Codec
from taps_registry.plugins.encodings.floats import BFloat16Values, Float32
from taps_registry.plugins.encodings.integers import Int4
from taps_registry.plugins.encodings.zstd import LINE, PART, Compressed, CompressedEncoding
from taps_registry.plugins.errors import PluginError
from taps_registry.plugins.manager import PluginManager
from taps_registry.registry.store.packed import open_packed

PLUGINS = PluginManager()


def tuned(shape: tuple[int, ...] = (32, 16, 3, 3)) -> tuple[Tensor, Tensor]:
    """A task's tensor whose values are within a few per cent of the base's, and the base's."""
    chance = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=chance)
    return base * (1 + 0.01 * torch.randn(shape, generator=chance)), base


def nbytes(parts: dict[str, Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())


@pytest.mark.parametrize("name", PLUGINS.encodings())
def test_every_encoding_can_be_compressed_and_decodes_to_the_same_bits(name: str) -> None:
    plain, compressed = PLUGINS.encoding(name), PLUGINS.encoding(name + COMPRESSED)
    value, base = tuned()
    wanted = plain.decode(plain.encode(value, base), base)
    found = compressed.decode(compressed.encode(value, base), base)
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))
    assert (compressed.name, compressed.exact, compressed.fixed) == (name + COMPRESSED, plain.exact, False)
    assert compressed.nbytes((4, 4)) == plain.nbytes((4, 4))


def test_weights_near_the_base_take_much_fewer_bytes() -> None:
    value, base = tuned()
    parts = CompressedEncoding(Float32()).encode(value, base)
    assert set(parts) == {PART}
    assert nbytes(parts) < 0.8 * value.nbytes
    assert nbytes(CompressedEncoding(Float32()).encode(base.clone(), base)) < 0.02 * value.nbytes


SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-45, -1e-45, 3.4e38, -3.4e38]


def test_every_pair_of_special_values_comes_back_to_the_last_bit() -> None:
    value = torch.tensor(SPECIAL * 40)
    base = torch.tensor([number for number in SPECIAL for _ in range(40)])
    value.view(torch.int32)[-1] = 0x7FC12345  # a NaN that carries a number
    parts = Compressed(Float32()).encode(value, base)
    assert set(parts) == {PART}
    assert torch.equal(Compressed(Float32()).decode(parts, base).view(torch.int32), value.view(torch.int32))


def test_what_does_not_shrink_is_stored_as_the_inner_codec_has_it() -> None:
    value, base = tuned((3,))
    parts = Compressed(BFloat16Values()).encode(value, base)
    assert set(parts) == {""}
    assert nbytes(parts) == 6


def test_norms_and_vectors_are_compressed_too() -> None:
    assert PLUGINS.encoding("int8+zstd").vectors.name == "bf16-values+zstd"  # type: ignore[union-attr]
    assert PLUGINS.encoding("int4+zstd").vectors.name == "float8-changes+zstd"  # type: ignore[union-attr]
    assert PLUGINS.encoding("fp32+zstd").vectors.name == "fp32+zstd"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", ["int5+zstd", "+zstd", "int4+zstd+zstd", "low-rank+zstd", "bf16-values+zstd", "int4+zip"]
)
def test_other_names_are_no_encodings(name: str) -> None:
    with pytest.raises(PluginError, match="There is no encoding"):
        PLUGINS.encoding(name)


def test_a_form_is_found_by_the_name_in_the_header() -> None:
    assert PLUGINS.form("bf16-values+zstd").name == "bf16-values+zstd"
    for name in ("low-rank+zstd", "int4+zstd+zstd", "int5+zstd"):
        with pytest.raises(PluginError, match="There is no form"):
            PLUGINS.form(name)


# Damage


def frame(content: bytes, **options: Any) -> dict[str, Tensor]:
    packed = zstandard.ZstdCompressor(**options).compress(content)
    return {PART: torch.frombuffer(bytearray(packed), dtype=torch.uint8)}


def described(parts: Any, content: bytes = b"") -> dict[str, Tensor]:
    return frame(json.dumps(parts).encode() + b"\n" + content)


BASE = torch.zeros(4, 4)
WRONG = {
    "no frame": ({PART: torch.zeros(40, dtype=torch.uint8)}, "does not decompress"),
    "no bytes": ({PART: torch.zeros(40)}, "expected a vector of bytes"),
    "nothing": ({PART: torch.zeros(0, dtype=torch.uint8)}, "expected a vector of bytes"),
    "an unknown length": (frame(b"[]\n", write_content_size=False), "says that it holds -1 bytes"),
    "far too much": (frame(bytes(10**8)), f"at most {LINE + 64} can be"),
    "no description": (frame(bytes(20)), "Expecting value"),
    "a description without end": (frame(b"[" * 4000), "does not describe its parts"),
    "other than three fields": (described([["", "float32"]]), "not enough values"),
    "a dtype that is none": (described([["", "load", [4, 4]]], bytes(64)), "does not describe its parts"),
    "a length below zero": (described([["", "float32", [-1]]]), "does not describe its parts"),
    "a length that is no integer": (described([["", "float32", [4.0, 4]]], bytes(64)), "does not describe its parts"),
    "too few bytes": (described([["", "float32", [4, 4]]], bytes(63)), "cut short"),
    "too many bytes": (described([["", "float32", [4, 4]]], bytes(65)), "holds 65 bytes of parts, and describes 64"),
    "another shape": (described([["", "float32", [4, 3]]], bytes(48)), "expected torch.float32"),
    "another part": (described([["scale", "float32", [4, 4]]], bytes(64)), "found nothing"),
    "a shape beyond all bounds": (described([["", "float32", [0, 10**30]]]), "cannot be"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_a_part_is_refused_that_has(what: str) -> None:
    parts, said = WRONG[what]
    with pytest.raises((ValueError, KeyError), match=said):
        Compressed(Float32()).decode(parts, BASE)


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data())
@pytest.mark.parametrize("codec", [Compressed(Float32()), Compressed(Int4())], ids=lambda codec: str(codec.name))
def test_a_frame_damaged_anywhere_decodes_or_is_refused(codec: Codec, data: st.DataObject) -> None:
    value, base = tuned()
    damaged = codec.encode(value, base)[PART].clone()
    for _ in range(data.draw(st.integers(1, 3), "bytes changed")):
        at = data.draw(st.one_of(st.integers(0, 40), st.integers(0, len(damaged) - 1)), "at")
        damaged[at] = data.draw(st.integers(0, 255), "to")
    kept = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))), "bytes kept")
    try:
        found = codec.decode({PART: damaged[:kept]}, base)
    except (ValueError, KeyError):
        return
    assert (found.shape, found.dtype) == (base.shape, torch.float32)


# In a registry


def test_layers_count_the_bytes_of_the_file(add: Any, registry: Any) -> None:
    plain, task = add("plain", method="full"), add("packed", method="full", encoding="fp32+zstd")
    assert (task.encoding, task.params, task.metrics) == ("fp32+zstd", plain.params, plain.metrics)
    assert task.bytes < 0.95 * plain.bytes
    path: Path = next(registry.home.glob(f"objects/*/{task.digest[2:]}.safetensors"))
    with open_packed(path) as file:
        body = sum(file.tensor(name).nbytes for name in file.names() if not name.startswith("fc."))
    assert sum(layer.bytes for layer in registry.task("packed").layers) == body
    (cost,) = registry.cost(["packed"], by="layer").bases
    assert sum(row.task_bytes for row in cost.by) == body
    states = [registry.load(name, device="cpu").model.state_dict() for name in ("plain", "packed")]
    assert all(torch.equal(one, other) for one, other in zip(*(state.values() for state in states), strict=True))
    assert registry.verify(deep=True) == ()
