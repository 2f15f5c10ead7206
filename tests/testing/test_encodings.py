"""Every built-in encoding passes the suite that strangers are given; the suite fails what breaks its contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log2
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from taps_registry.plugins import (
    Encoding,
)
from taps_registry.plugins.encodings import COMPRESSED, Codec
from taps_registry.plugins.encodings.floats import BFloat16, BFloat16Values, Float16, Float32
from taps_registry.plugins.encodings.integers import Int3, Int4, Int8
from taps_registry.plugins.encodings.minifloat import Float8Changes, levels, ratios
from taps_registry.plugins.encodings.svd import ERROR, Svd
from taps_registry.plugins.encodings.zstd import Compressed, CompressedEncoding
from taps_registry.plugins.manager import PluginManager
from taps_registry.testing import (
    CodecTests,
    EncodingTests,
)


class TestFloat32(EncodingTests):
    encoding = Float32()


class TestBFloat16Values(CodecTests):
    encoding: ClassVar[Codec] = BFloat16Values()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return 2.0**-8 * value.abs()  # 8 significant bits, rounded to the nearest


class TestFloat8Changes(CodecTests):
    encoding: ClassVar[Codec] = Float8Changes()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """Half a step of 4 bits of mantissa, or of the subnormals; a whole one where a sign would turn."""
        return torch.maximum(delta.abs() / 16, delta.abs().max() / 1984)

    def test_a_variance_that_has_almost_gone_stays_above_zero(self) -> None:
        base = torch.logspace(-6, 2, 400)
        for shrunk in (0.0, 1e-30, 1e-6, 1e-3, 0.3):
            value = base * shrunk
            found = self.encoding.decode(self.encoding.encode(value, base), base)
            assert (found >= 0).all()
            if shrunk:
                assert ((found / base).log2() - (value / base).log2()).abs().max() <= -log2(shrunk) / 16 + 1e-6

    def test_the_levels_of_ratios_are_what_they_should_be(self) -> None:
        expected = [2.0 ** (level / 1024) for level in levels(16, 8).tolist()]
        torch.testing.assert_close(ratios(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


class TestBFloat16(EncodingTests):
    encoding = BFloat16()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return 2.0**-8 * delta.abs()  # 8 significant bits, rounded to the nearest


class TestFloat16(EncodingTests):
    encoding = Float16()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """11 significant bits, rounded to the nearest; the smallest step is 2^-24; cut off at the largest number."""
        return 2.0**-11 * delta.abs() + 2.0**-25 + (delta.abs() - 65504).clamp(min=0)


class Quantised(EncodingTests):
    """No value is further off than its row's root of the sum of squares, which the chosen scale makes no larger."""

    steps: int

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        rows = delta.reshape(len(delta), -1)
        widest = rows.abs().amax(dim=1, keepdim=True) * rows.shape[1] ** 0.5 / (2 * self.steps)
        return widest.expand_as(rows).reshape(delta.shape)


class TestInt8(Quantised):
    encoding = Int8()
    steps = 127


class TestInt4(Quantised):
    encoding: ClassVar[Encoding] = Int4()
    steps = 7


class TestLowRank(EncodingTests):
    """No value is further off than all of them together: by what is cut off, and by 8 bits of both factors."""

    encoding = Svd()

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        return torch.full_like(delta, 1.1 * ERROR * float(delta.double().norm()))


class TestCompressedFloat32(EncodingTests):
    encoding = CompressedEncoding(Float32())


class TestCompressedInt4(TestInt4):
    encoding = CompressedEncoding(Int4())


class TestCompressedBFloat16Values(TestBFloat16Values):
    encoding = Compressed(BFloat16Values())


class TestCompressedFloat8Changes(TestFloat8Changes):
    encoding = Compressed(Float8Changes())


class TestInt3(Quantised):
    encoding = Int3()
    steps = 3


def test_no_built_in_encoding_is_left_out(built_in: Callable[[str], set[str]]) -> None:
    assert {suite.encoding.name.removesuffix(COMPRESSED) for suite in suites(EncodingTests)} == built_in("encoding")


def test_every_codec_of_vectors_passes_a_suite(built_in: Callable[[str], set[str]]) -> None:
    codecs = {name for name in built_in("form") if isinstance(PluginManager().form(name), Codec)}
    others = (suite for suite in suites(CodecTests) if not isinstance(suite, EncodingTests))
    assert {suite.encoding.name.removesuffix(COMPRESSED) for suite in others} == codecs


def suites(contract: type) -> list[Any]:
    """The suites of this file that pytest collects."""
    return [found() for name, found in globals().items() if name.startswith("Test") and issubclass(found, contract)]


# A suite that nothing fails would show nothing


class Careless(BFloat16):
    """Takes whatever parts it is given."""

    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        delta = parts.get("", torch.zeros(1)).float().reshape(-1)[: base.numel()]
        return base + delta.expand(base.numel()).reshape(base.shape)


class WritesToTheBase(BFloat16):
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return base.add_(parts[""].float())


class Undecided(BFloat16):
    drawn = torch.Generator().manual_seed(0)

    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        noise = 1 + 0.01 * torch.rand(value.shape, generator=self.drawn)
        return super().encode(base + (value - base) * noise, base)


class Miscounts(BFloat16):
    def nbytes(self, shape: tuple[int, ...]) -> int:
        return 2 * shape[0] if shape else 2


class MisnamesParts(BFloat16):
    def encode(self, value: Tensor, base: Tensor) -> dict[str, Tensor]:
        return {"a::b": value - base}


class Flattens(BFloat16):
    def decode(self, parts: Mapping[str, Tensor], base: Tensor) -> Tensor:
        return super().decode(parts, base).reshape(-1)


BROKEN_ENCODINGS: tuple[tuple[Encoding, str, str], ...] = (
    (Flattens(), "test_every_value_comes_back_as_near_as_promised", "decodes to the shape"),
    (Undecided(), "test_the_same_tensor_gives_the_same_bits_each_time", "other bits the second time"),
    (WritesToTheBase(), "test_what_it_is_given_is_not_written_to", "are changed"),
    (Miscounts(), "test_the_bytes_are_known_beforehand", r"nbytes\(\) said"),
    (MisnamesParts(), "test_parts_are_tensors_on_the_cpu_by_name", "stands between"),
    (Careless(), "test_wrong_parts_are_refused", r"decode\(\) takes parts"),
)


@pytest.mark.parametrize(
    ("encoding", "test", "match"), BROKEN_ENCODINGS, ids=[type(broken).__name__ for broken, _, _ in BROKEN_ENCODINGS]
)
def test_a_broken_encoding_fails(encoding: Encoding, test: str, match: str) -> None:
    suite = TestBFloat16()
    suite.encoding = encoding  # type: ignore[misc]
    with pytest.raises(AssertionError, match=match):
        getattr(suite, test)()


@pytest.mark.parametrize("exact", [True, False])
def test_an_encoding_that_promises_too_much_fails(exact: bool) -> None:
    class TooExact(EncodingTests):
        encoding = BFloat16()

    suite = TooExact()
    suite.encoding.exact = exact
    match = "not exact to the last bit" if exact else r"further off than tolerance\(\) says"
    with pytest.raises(AssertionError, match=match):
        suite.test_every_value_comes_back_as_near_as_promised()
