"""What files hold decodes to the same bits on every machine: digests that were computed once, on another one."""

from __future__ import annotations

from hashlib import sha256

import numpy
import pytest
import torch
from torch import Tensor

from taps_registry.plugins.encodings import Encoding
from taps_registry.plugins.encodings.low_rank import PACKED, PlainLowRank
from taps_registry.plugins.encodings.svd import Svd
from taps_registry.plugins.manager import PluginManager

SHAPE = (24, 6, 3, 3)
RANK = 5
KNOWN = {
    "bf16": "d2b530e42192f611",
    "bf16 vectors": "f16645afcf509824",
    "fp16": "721ec2a0537e24a3",
    "fp16 vectors": "f16645afcf509824",
    "fp32": "9faf98cc3a9e0a52",
    "int3": "b2df68e5758a7465",
    "int3 vectors": "cfd69a3bb54ca9e3",
    "int4": "93271fa927070eaf",
    "int4 vectors": "cfd69a3bb54ca9e3",
    "int8": "8e419cb58020677e",
    "int8 vectors": "f16645afcf509824",
    "svd": "32b568e15718f52b",
    "svd vectors": "f16645afcf509824",
    "low-rank": "d73ff3328c51b882",
    "low-rank-int8": "32b568e15718f52b",
    "low-rank-int4": "22bfbf965d44b6a4",
    "low-rank-int3": "66ea27709dc80900",
}


def numbers(*shape: int, seed: int) -> Tensor:
    """Multiples of 1/8192 between -1 and 1: sums of some hundreds of them are exact in any order."""
    places = numpy.arange(numpy.prod(shape), dtype=numpy.uint64) + numpy.uint64(seed)
    mixed = (places * numpy.uint64(2654435761)) % numpy.uint64(2**32) >> numpy.uint64(18)
    return torch.from_numpy((mixed.astype("float32") - 8192) / 8192).reshape(shape)


def decoded(name: str) -> Tensor:
    """A kernel, or with ``vectors`` in its name a norm's scale, out of the parts that are stored of it."""
    plugins = PluginManager()
    base, value = numbers(*SHAPE, seed=1), numbers(*SHAPE, seed=7)
    if name in ("low-rank", *PACKED):
        form = PACKED.get(name) or PlainLowRank()
        return form.decode(form.parts(numbers(24, RANK, seed=3), numbers(RANK, 54, seed=5)), base)
    if name == "svd":  # which factors an encoder finds is its machine's affair
        parts = PACKED["low-rank-int8"].parts(numbers(24, RANK, seed=3), numbers(RANK, 54, seed=5))
        return Svd().decode(parts, base)
    encoding, _, vectors = name.partition(" ")
    codec: Encoding = plugins.encoding(encoding)
    if vectors:
        assert codec.vectors is not None
        return codec.vectors.decode(codec.vectors.encode(value[:, 0, 0, 0], base[:, 0, 0, 0]), base[:, 0, 0, 0])
    return codec.decode(codec.encode(value, base), base)


@pytest.mark.parametrize("name", KNOWN)
def test_the_bits_are_those_of_every_machine(name: str) -> None:
    found = decoded(name)
    assert found.dtype == torch.float32
    assert sha256(found.contiguous().numpy().tobytes()).hexdigest()[:16] == KNOWN[name]


def test_every_encoding_is_among_them() -> None:
    plugins = PluginManager()
    with_vectors = {f"{name} vectors" for name in plugins.encodings() if plugins.encoding(name).vectors is not None}
    assert set(KNOWN) == {*plugins.encodings(), *with_vectors, "low-rank", *PACKED}
