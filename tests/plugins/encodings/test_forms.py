"""The forms that weights are stored in: how they decode to the last bit, and how damaged ones are refused."""

from __future__ import annotations

import json
import operator
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from hashlib import sha256
from math import ceil, frexp, prod
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from taps_registry import Registry
from taps_registry.plugins.encodings import Form
from taps_registry.plugins.encodings import exact_product as module
from taps_registry.plugins.encodings.exact_product import exact_product
from taps_registry.plugins.encodings.low_rank import PlainLowRank
from taps_registry.plugins.encodings.packing import pack
from taps_registry.plugins.methods.diff_pruning import Sparse, sparse_parts
from taps_registry.plugins.methods.parallel_adapter import Centre
from taps_registry.plugins.methods.piggyback import Masked
from taps_registry.plugins.methods.rcm import Modulated
from taps_registry.registry.errors import IntegrityError
from taps_registry.registry.store.packed import open_packed, write_packed

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
RUN = 65536
Factors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal, and zeros of the same sign."""
    return torch.equal(first.detach().contiguous().view(torch.int32), second.detach().contiguous().view(torch.int32))


def by_the_format(left: Tensor, right: Tensor) -> numpy.ndarray[Any, Any]:
    """A product of matrices in whole numbers of Python's, which never round, and one rounding to float32."""
    bits = (53 - left.shape[1].bit_length()) // 2
    rows, columns = whole(left.tolist(), bits), whole(right.T.tolist(), bits)
    exact = [[sum(map(operator.mul, row, column)) for column in columns] for row in rows]
    return numpy.array([[float(value) for value in line] for line in exact]).astype(numpy.float32)


def whole(lines: list[list[float]], bits: int) -> list[list[Fraction]]:
    """Each line in multiples of a power of two ``bits`` bits below its largest value."""
    units = [Fraction(2) ** (frexp(max(map(abs, line)))[1] - bits) for line in lines]
    return [[round(Fraction(value) / unit) * unit for value in line] for line, unit in zip(lines, units, strict=True)]


def test_matrix_products_are_rounded_as_the_format_says() -> None:
    base, up, down = torch.randn(40, 6, 3, 3), torch.randn(40, 7), torch.randn(7, 54)
    down[:, 3], up[5] = 0, up[5] * 1e-20
    found = PlainLowRank().decode({"up": up, "down": down}, base)
    assert numpy.array_equal(found.numpy(), base.numpy() + by_the_format(up, down).reshape(40, 6, 3, 3))
    mixer = torch.randn(2, 20, 20)
    halves = [by_the_format(block, bank) for block, bank in zip(mixer, base.reshape(2, 20, -1), strict=True)]
    mixed = Modulated().decode({"modulator": mixer}, base)
    assert numpy.array_equal(mixed.numpy(), numpy.concatenate(halves).reshape(40, 6, 3, 3))


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(0, 600),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 99),
    wild=st.booleans(),
)
def test_matrix_products_are_the_same_bits_in_any_order(
    rank: int, rows: int, columns: int, seed: int, wild: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    if wild:  # values of very different sizes
        left *= torch.randn(left.shape, generator=generator).mul(20).exp2()
    order = torch.randperm(rank, generator=generator)
    found = exact_product(left, right)
    assert same_bits(found, exact_product(left[:, order], right[order]))
    bound = left.abs().amax(1, keepdim=True) * right.abs().amax(0) if rank else torch.zeros(rows, columns)
    assert ((found.double() - left.double() @ right.double()).abs() <= 2.0**-20 * max(rank, 1) * bound).all()


@pytest.mark.parametrize("block", [1, 8 * 70, 8 * 70 * 3])
def test_matrix_products_are_the_same_bits_in_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.randn(20, 5), torch.randn(5, 70)
    whole = exact_product(left, right)
    monkeypatch.setattr(module, "BLOCK", block)
    assert same_bits(exact_product(left, right), whole)


def test_what_a_product_changes_keeps_the_dtype_of_the_base() -> None:
    base, up, down = torch.randn(6, 4, 3, 3).double(), torch.randn(6, 2), torch.randn(2, 36)
    found = PlainLowRank().decode({"up": up, "down": down}, base)
    assert same_bits(found, base + exact_product(up, down).reshape(base.shape))
    assert found.dtype == torch.float64


LARGE = (300, 64, 3, 3)  # 172,800 values: torch shares the work out, and positions span three runs


def large_parts(form: str) -> Factors:
    count = prod(LARGE)
    if form == "masked":
        return {"mask": pack(torch.rand(count) < 0.5, 1)}
    if form == "sparse":
        return sparse_parts(torch.randn(LARGE), torch.rand(LARGE) < 0.3)
    rows, per_group, *_ = LARGE
    return {
        "low-rank": {"up": torch.randn(rows, 3), "down": torch.randn(3, count // rows)},
        "modulated": {"modulator": torch.randn(2, rows // 2, rows // 2)},
        "centre": {"adapter": torch.randn(rows, per_group)},
    }[form]


FORMS: dict[str, Form] = {
    "low-rank": PlainLowRank(),
    "modulated": Modulated(),
    "centre": Centre(),
    "masked": Masked(),
    "sparse": Sparse(),
}


@pytest.mark.parametrize("form", FORMS)
def test_decoding_gives_the_same_bits_whatever_the_number_of_threads(form: str) -> None:
    base, parts, before = torch.randn(LARGE), large_parts(form), torch.get_num_threads()
    original = base.clone()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(FORMS[form].decode(parts, base))
    finally:
        torch.set_num_threads(before)
    assert same_bits(*found)
    assert same_bits(base, original), "the base was written to"
    assert not torch.equal(found[0], base)


@settings(max_examples=60, deadline=None)
@given(bits=st.lists(st.booleans(), min_size=1, max_size=70), many=st.integers(0, 3))
@example(bits=[True], many=0)
@example(bits=[True] * 8, many=0)
@example(bits=[False] * 9, many=0)
def test_masks_of_any_length_pack_and_unpack(bits: list[bool], many: int) -> None:
    mask = torch.tensor(bits * (1 + 41 * many))
    base = torch.randn(len(mask))
    base[0] = -0.0
    packed = pack(mask, 1)
    assert packed.dtype == torch.uint8
    assert len(packed) == ceil(len(mask) / 8)
    assert packed.tolist() == numpy.packbits(mask.numpy(), bitorder="little").tolist()
    decoded = Masked().decode({"mask": packed}, base)
    assert same_bits(decoded, torch.where(mask, base, torch.zeros(())))


COUNTS = st.sampled_from([1, 2, 100, RUN - 1, RUN, RUN + 1, 2 * RUN, 2 * RUN + 1, 3 * RUN - 7])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=COUNTS)
def test_positions_survive_across_runs(data: st.DataObject, count: int) -> None:
    near = [place for run in range(0, count + 1, RUN) for place in (run - 1, run, run + 1) if 0 <= place < count]
    anywhere = st.one_of(st.sampled_from(near), st.integers(0, count - 1))
    places = sorted(data.draw(st.sets(anywhere, max_size=12)))
    kept = torch.zeros(count, dtype=torch.bool)
    kept[places] = True
    base = torch.randn(count)
    value = torch.where(kept, torch.randn(count), base)
    parts = sparse_parts(value, kept)
    taken = sum(part.nbytes for part in parts.values())
    assert taken == min(4 * count, 6 * len(places) + 4 * ceil(count / RUN))  # all values, where that is less
    if "positions" in parts:
        assert parts["positions"].tolist() == [place % RUN - RUN // 2 for place in places]
    decoded = Sparse().decode(parts, base)
    assert same_bits(decoded, torch.where(kept, value, base))


# Damage


def bit(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int16)


SHAPE = (8, 3, 3, 3)  # of the base: 216 values, 27 bytes of mask, one run
WHOLE: dict[str, Factors] = {
    "low-rank": {"up": torch.ones(8, 2), "down": torch.ones(2, 27)},
    "modulated": {"modulator": torch.ones(1, 8, 8)},
    "centre": {"adapter": torch.ones(8, 3)},
    "masked": {"mask": torch.ones(27, dtype=torch.uint8)},
    "sparse": {
        "values": torch.ones(3),
        "positions": bit([-32768, -32767, -32553]),
        "counts": torch.tensor([3], dtype=torch.int32),
    },
}
DAMAGES: dict[str, tuple[str, str, Tensor | None]] = {
    "no up": ("low-rank", "up", None),
    "no down": ("low-rank", "down", None),
    "a row too few": ("low-rank", "up", torch.ones(7, 2)),
    "a column too many": ("low-rank", "down", torch.ones(2, 28)),
    "ranks that differ": ("low-rank", "down", torch.ones(3, 27)),
    "factors of half the width": ("low-rank", "up", torch.ones(8, 2, dtype=torch.float16)),
    "up of three dimensions": ("low-rank", "up", torch.ones(8, 1, 2)),
    "up that is a number": ("low-rank", "up", torch.tensor(1.0)),
    "no modulator": ("modulated", "modulator", None),
    "a modulator of other filters": ("modulated", "modulator", torch.ones(1, 7, 7)),
    "more groups than fit": ("modulated", "modulator", torch.ones(3, 2, 2)),
    "a modulator of double precision": ("modulated", "modulator", torch.ones(1, 8, 8, dtype=torch.float64)),
    "a modulator that is a number": ("modulated", "modulator", torch.tensor(1.0)),
    "a modulator of nothing": ("modulated", "modulator", torch.ones(0, 8, 8)),
    "no adapter": ("centre", "adapter", None),
    "an adapter turned round": ("centre", "adapter", torch.ones(3, 8)),
    "an adapter of whole numbers": ("centre", "adapter", torch.ones(8, 3, dtype=torch.int32)),
    "no mask": ("masked", "mask", None),
    "a mask too short": ("masked", "mask", torch.ones(26, dtype=torch.uint8)),
    "a mask too long": ("masked", "mask", torch.ones(28, dtype=torch.uint8)),
    "a mask of signed bytes": ("masked", "mask", torch.ones(27, dtype=torch.int8)),
    "no values": ("sparse", "values", None),
    "no positions": ("sparse", "positions", None),
    "no counts": ("sparse", "counts", None),
    "fewer values than counted": ("sparse", "values", torch.ones(2)),
    "values of half the width": ("sparse", "values", torch.ones(3, dtype=torch.bfloat16)),
    "positions out of range": ("sparse", "positions", bit([-32768, -32767, -32552])),
    "positions out of order": ("sparse", "positions", bit([-32767, -32768, -32553])),
    "a position twice": ("sparse", "positions", bit([-32768, -32768, -32553])),
    "positions of 32 bits": ("sparse", "positions", bit([-32768, -32767, -32553]).int()),
    "counts of another sum": ("sparse", "counts", torch.tensor([2], dtype=torch.int32)),
    "a count below zero": ("sparse", "counts", torch.tensor([-3], dtype=torch.int32)),
    "counts of two runs": ("sparse", "counts", torch.tensor([1, 2], dtype=torch.int32)),
}


SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_type": "deep", "stem_width": 8}
KERNEL = "conv1.0.weight"  # of this ResNet: (8, 3, 3, 3)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Registry]:
    """A registry with a task whose artifact is replaced again and again."""
    with Registry.init(tmp_path_factory.mktemp("damage") / "home") as registry:
        registry.add_base("base", "resnet18", random_init=True, input_size=32, arguments=SMALL)
        registry.add_task("task", "base", images, method="head-only", **QUICK)
        yield registry


def object_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def put(registry: Registry, form: str, parts: Factors) -> None:
    """Give the task an artifact with the kernel in this form; its digest is right, and the catalog knows it."""
    with open_packed(object_of(registry, registry.task("task").digest)) as file:
        header = json.loads(file.text)
        tensors = {name: file.tensor(name) for name in file.names() if not name.startswith(KERNEL)}
    entry = {"part": "weights", "encoding": form, "parts": sorted(parts), "shape": SHAPE, "dtype": "float32"}
    header["tensors"][KERNEL] = entry
    draft = registry.home / "draft"
    write_packed(draft, {**tensors, **{f"{KERNEL}::{part}": t for part, t in parts.items()}}, json.dumps(header))
    digest = sha256(draft.read_bytes()).hexdigest()
    object_of(registry, digest).parent.mkdir(exist_ok=True)
    draft.rename(object_of(registry, digest))
    with closing(sqlite3.connect(registry.home / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("UPDATE taps_artifacts SET digest = ?", (digest,))


@pytest.mark.parametrize("what", DAMAGES)
def test_an_artifact_is_refused_on_loading_that_has(home: Registry, what: str) -> None:
    form, part, damaged = DAMAGES[what]
    parts = {**WHOLE[form], part: damaged}
    put(home, form, {name: tensor for name, tensor in parts.items() if tensor is not None})
    with pytest.raises(IntegrityError, match=f"{re.escape(KERNEL)} of an artifact cannot be decoded") as caught:
        home.load("task", device="cpu")
    assert caught.value.exit_code == 9


@pytest.mark.parametrize("form", WHOLE)
def test_an_artifact_loads_whose_parts_are_whole(home: Registry, form: str) -> None:
    """Else it is not the damage that is refused above."""
    put(home, form, WHOLE[form])
    base = load_file(object_of(home, home.base("base").object))[KERNEL]
    found = home.load("task", device="cpu").model.state_dict()[KERNEL]
    assert torch.equal(found, FORMS[form].decode(WHOLE[form], base))
    assert form == "masked" or not torch.equal(found, base)
