"""The contract of an encoding, as tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..plugins.encodings import Codec, Encoding, Form
from ..plugins.manager import PluginManager
from .home import QUICK, add, images_in, registry_with_base
from .models import differing, logits, same_bits

Shapes = tuple[tuple[int, ...], ...]

VECTORS: Shapes = ((), (1,), (7,), (300,))
MATRICES: Shapes = ((3, 5), (1, 1), (4, 3, 3, 3), (2, 8, 1, 1), (64, 40))
EXTREMES = (1e30, -1e30, 1e-30, 0.0, -0.0, 1.0, 2.0**-126, 3.0)


class CodecTests:
    """Subclass this for what an encoding puts norms and vectors into, and say how near they come back.

    Attributes:
        encoding: under test.
        shapes: of the tensors that it is given.
    """

    encoding: ClassVar[Codec]
    shapes: ClassVar[Shapes] = VECTORS + MATRICES

    def tolerance(self, value: Tensor, delta: Tensor) -> Tensor:
        """How far each value may come back from where it was, if the encoding is not exact.

        The suite adds what float32 loses in a subtraction and an addition.

        Args:
            value: the task's tensor.
            delta: its differences from the base.
        """
        return torch.zeros_like(delta)

    def cases(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What it is, a task's tensor, and the base's."""
        generator = torch.Generator().manual_seed(0)
        for shape in self.shapes:
            base = torch.randn(shape, generator=generator)
            yield f"{shape}, small deltas", base + 0.01 * torch.randn(shape, generator=generator), base
            yield f"{shape}, no delta", base.clone(), base
            yield f"{shape}, zeros", torch.zeros(shape), base
        extremes = torch.tensor(EXTREMES).reshape(2, -1)
        yield "extreme values", extremes, torch.ones_like(extremes)
        yield "an extreme base", torch.ones_like(extremes), extremes

    def test_every_value_comes_back_as_near_as_promised(self) -> None:
        for what, value, base in self.cases():
            decoded = self.encoding.decode(self.encoding.encode(value, base), base)
            assert decoded.shape == base.shape, f"{what}: decodes to the shape {tuple(decoded.shape)}"
            assert decoded.dtype == torch.float32, f"{what}: decodes to {decoded.dtype}, not float32"
            if self.encoding.exact:
                assert same_bits(decoded, value), f"{what}: not exact to the last bit"
                continue
            delta = value - base
            allowed = self.tolerance(value, delta).double() + 2.0**-23 * (value.double().abs() + base.double().abs())
            error = (decoded.double() - value.double()).abs()
            excess = float((error - allowed).max())
            assert excess <= 0, f"{what}: {excess:.3g} further off than tolerance() says"

    def test_the_same_tensor_gives_the_same_bits_each_time(self) -> None:
        for what, value, base in self.cases():
            first, second = self.encoding.encode(value, base), self.encoding.encode(value.clone(), base.clone())
            assert not differing(first, second), f"{what}: encode() gives other bits the second time"
            decoded = [self.encoding.decode(parts, base) for parts in (first, second)]
            assert same_bits(*decoded), f"{what}: decode() gives other bits the second time"

    def test_what_it_is_given_is_not_written_to(self) -> None:
        for what, value, base in self.cases():
            given = {"value": value.clone(), "base": base.clone()}
            parts = self.encoding.encode(value, base)
            kept = {name: part.clone() for name, part in parts.items()}
            self.encoding.decode(parts, base)
            assert not differing(given, {"value": value, "base": base}), f"{what}: the tensors it is given are changed"
            assert not differing(kept, parts), f"{what}: decode() changes the parts"

    def test_the_bytes_are_known_beforehand(self) -> None:
        for what, value, base in self.cases():
            parts = self.encoding.encode(value, base)
            found, said = sum(part.nbytes for part in parts.values()), self.encoding.nbytes(tuple(base.shape))
            assert found <= said, f"{what}: the parts take {found} bytes, nbytes() said {said} at most"
            if self.encoding.fixed:
                assert found == said, f"{what}: the parts take {found} bytes, nbytes() said {said}"

    def test_parts_are_tensors_on_the_cpu_by_name(self) -> None:
        for what, value, base in self.cases():
            parts = self.encoding.encode(value, base)
            assert parts, f"{what}: there are no parts"
            for name, part in parts.items():
                assert "::" not in name, f"{what}: '::' stands between a tensor's name and a part's, not in {name!r}"
                assert part.device.type == "cpu", f"{what}: the part {name!r} is on {part.device}"

    def test_wrong_parts_are_refused(self) -> None:
        for what, value, base in self.cases():
            for wrong, parts in spoiled(self.encoding.encode(value, base)):
                assert refuses(self.encoding, parts, base), f"{what}: decode() takes parts {wrong}"
            parts = self.encoding.encode(value, base)
            longer = torch.cat([base, base]) if base.ndim else base.new_ones(2)
            assert refuses(self.encoding, parts, longer), f"{what}: decode() takes parts of another tensor's shape"


class EncodingTests(CodecTests):
    """Subclass this, and name the encoding and, unless it is exact, how near values come back."""

    encoding: ClassVar[Encoding]
    shapes = MATRICES

    def test_a_task_comes_back_from_a_registry(self, tmp_path: Path) -> None:
        installed = PluginManager().encoding(self.encoding.name)  # raises an error that lists what there is
        assert type(installed) is type(self.encoding), f"--encoding {self.encoding.name} is {type(installed)}"
        settings = {"method": "full", "encoding": self.encoding.name, "epochs": 1}
        with registry_with_base(tmp_path, "test_resnet", 32, {}) as registry:
            said = registry.estimate("task", "base", images_in(tmp_path), **{**QUICK, **settings}).most
            task = add(registry, tmp_path, "task", **settings)
            layers = sum(layer.bytes for layer in registry.task("task").layers)
            assert layers <= said.bytes, f"estimate said {said.bytes:,} bytes at most; layers take {layers:,}"
            if self.encoding.fixed:
                assert said.bytes <= task.bytes, f"estimate said {said.bytes:,} bytes, the file takes {task.bytes:,}"
            models = [registry.load("task", device="cpu").model for _ in range(2)]
            assert same_bits(*(logits(model, 32) for model in models)), "a task loaded twice gives other logits"
            assert registry.verify(deep=True) == (), "verify finds problems"


def spoiled(parts: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Parts that no encoder made: one missing, too long, or of a dtype that none is stored in."""
    for name, part in parts.items():
        yield f"without {name!r}", {other: tensor for other, tensor in parts.items() if other != name}
        longer = torch.cat([part.reshape(-1), part.new_ones(1)])
        yield f"with a {name!r} that is too long", {**parts, name: longer}
        yield f"with a {name!r} of complex numbers", {**parts, name: part.to(torch.complex64)}


def refuses(form: Form, parts: Mapping[str, Tensor], base: Tensor) -> bool:
    """Whether a form says that these are not the parts of a tensor of the base's shape."""
    try:
        form.decode(parts, base)
    except (ValueError, KeyError):
        return True
    return False
