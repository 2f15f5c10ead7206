"""Files of many tensors and a text: safetensors, with the text and the small tensors end to end.

safetensors takes some ninety bytes of index for a tensor, as much as a norm in 8 bits has values. So tensors below 64
KiB lie in one tensor of bytes, in the order of their names. Before them in it lies the text, with a second line that
lists what they are, compressed by zlib with a dictionary: what such texts say again and again takes next to nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .tensors import write_tensors

SMALL = 64 * 1024  # bytes
BUNDLE = "::small"
LONGEST = 64 * 1024 * 1024  # bytes of text; a few kilobytes of a damaged file could claim a thousand times as many
WORDS = (  # zlib's dictionary, whose end is cheapest to refer to; another one would be another format
    b'"border""squash""bilinear"0.9,0.95,[0.5,0.5,0.5]"float16""bfloat16""float64""int64""uint8""int8""int4""int3""bf16"'
    b'"bf16-values""float8-changes""low-rank""full""lora""taps""norms"["","scale"]["down","up"]features.denseblock1.'
    b"stages.0.blocks.0.attn.qkv.weight[0:384].mlp.fc1.norm1.running_mean.running_varlayer1.0.downsample.conv1.weight"
    b'{"base":"","classes":["","common":"","encoding":"fp32","extension":{},"format":1,"input":{"crop_mode":"center",'
    b'"crop_pct":0.875,1.0,"interpolation":"bicubic","mean":[0.485,0.456,0.406],"size":[3,224,224],"std":[0.229,0.224,'
    b'0.225]},"layers":[{"name":"","open":true,"score":null},],"method":"taps-rank","packages":{"form '
    b'fp32":"taps-registry 0.1.0","method taps":"taps-registry 0.1.0"},"tensors":{"fc.bias":{"dtype":'
    b'"float32","encoding":"","part":"weights","parts":[""],"shape":[]},"fc.weight":{"dtype":"float32","encoding":"",'
    b'"part":"head","parts":[""],"shape":[3,2048]}}}\n[["fc.bias","float32",[3]],["fc.weight","float32",[3,2048]]]'
)
INDEX = 160  # most bytes that safetensors' index takes for a tensor with a name of usual length


class PackedFile:
    """An open file, and the text that was stored with its tensors."""

    def __init__(self, file: Any) -> None:
        self._file = file
        lines, small = _decompressed(_bundle(file))
        self.text, listed = lines.split("\n")
        self._small = _unbundled(json.loads(listed), small)

    def names(self) -> set[str]:
        """Of all tensors."""
        return (set(self._file.keys()) - {BUNDLE}) | set(self._small)

    def tensor(self, name: str) -> Tensor:
        """One of them, on the CPU."""
        return self._small[name] if name in self._small else self._file.get_tensor(name)


@contextmanager
def open_packed(path: Path) -> Iterator[PackedFile]:
    """Open what ``write_packed`` wrote. Whatever else is in a file raises one of ``artifact.UNREADABLE``."""
    with safe_open(path, framework="pt") as file:
        yield PackedFile(file)


def write_packed(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write tensors and a text of one line, whole or not at all; the same content gives the same bytes.

    Raises StorageError if the disk refuses.
    """
    small = {name: tensor.detach().cpu() for name, tensor in sorted(tensors.items()) if tensor.nbytes < SMALL}
    large = {name: tensor for name, tensor in tensors.items() if name not in small}
    listed = [(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in small.items()]
    beside = bytearray(_compressed(text, json.dumps(listed, separators=(",", ":"))))
    pieces = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in small.values()]
    write_tensors(path, {**large, BUNDLE: torch.cat([torch.frombuffer(beside, dtype=torch.uint8), *pieces])})


def text_bytes(text: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """About how many bytes of a file are its text and its list of small tensors, by name and shape."""
    listed = [(name, "bfloat16", shape) for name, shape in sorted(shapes.items())]
    return len(_compressed(text, json.dumps(listed, separators=(",", ":"))))


def _compressed(*lines: str) -> bytes:
    deflater = zlib.compressobj(9, zdict=WORDS)
    return deflater.compress("\n".join(lines).encode()) + deflater.flush()


def _decompressed(raw: bytes) -> tuple[str, bytes]:
    """The text, and what follows it. Raises ValueError or zlib.error."""
    inflater = zlib.decompressobj(zdict=WORDS)
    text = inflater.decompress(raw, LONGEST)
    if not inflater.eof:
        raise ValueError(f"the text is truncated, or longer than {LONGEST:,} bytes")
    return text.decode(), inflater.unused_data


def _bundle(file: Any) -> bytes:
    """The text and the small tensors. Raises SafetensorError if there are none, ValueError if they are no bytes."""
    whole: Tensor = file.get_tensor(BUNDLE)
    if whole.dtype != torch.uint8:
        raise ValueError(f"{BUNDLE} has dtype {whole.dtype}, not uint8")
    return bytes(whole.numpy())


def _unbundled(listed: list[tuple[str, str, list[int]]], raw: bytes) -> dict[str, Tensor]:
    """The small tensors, each in memory of its own. Raises ValueError if they are not just what is there."""
    for name, dtype, shape in listed:
        if not isinstance(name, str):
            raise ValueError(f"the list of small tensors has the name {name!r}")
        if not isinstance(getattr(torch, dtype), torch.dtype):
            raise ValueError(f"the list of small tensors has the dtype {dtype!r}")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"the list of small tensors has the shape {shape}")
    dtypes = {name: getattr(torch, dtype) for name, dtype, _ in listed}
    if len(dtypes) != len(listed):
        raise ValueError("the list of small tensors has a name twice")
    sizes = [prod(shape) * dtypes[name].itemsize for name, _, shape in listed]
    if sum(sizes) != len(raw):
        raise ValueError(f"the list of small tensors describes {sum(sizes)} bytes, but there are {len(raw)}")
    whole = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    pieces = zip(listed, whole.split(sizes), strict=True)  # type: ignore[no-untyped-call]
    return {name: piece.clone().view(dtypes[name]).reshape(shape) for (name, _, shape), piece in pieces}
