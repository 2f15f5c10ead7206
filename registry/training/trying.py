"""Trying out what plugins bring before anything is trained: their mistakes are found in a moment, not after hours."""

from __future__ import annotations

import torch

from ...plugins.architectures.pieces import tensor_of
from ...plugins.encodings import Codec
from ...plugins.guard import described
from ..errors import PluginError, first_line
from .job import Job

SHAPE = (8, 4, 3, 3)  # of a tensor that encodings are tried on


def try_out(job: Job) -> None:
    """Hold the method and the encoding of a run to their contracts.

    Raises:
        PluginError: naming the plugin, if it breaks one.
    """
    _try_method(job)
    for codec in (job.encoding, job.encoding.vectors):
        if codec is not None:
            _try_codec(codec)


def _try_method(job: Job) -> None:
    stored = job.method.least(job.model, job.partition, job.method_settings)
    there = job.model.state_dict()
    if unknown := sorted(name for name in stored.tensors if tensor_of(name) not in there):
        raise PluginError(
            f"{described(job.method)} stores {', '.join(unknown[:4])}, which {type(job.model).__name__} does not have."
        )
    if missing := sorted(set(job.partition.head) - stored.tensors):
        raise PluginError(f"{described(job.method)} does not store the head: {', '.join(missing[:4])}.")


def _try_codec(codec: Codec) -> None:
    base = torch.linspace(-1, 1, torch.Size(SHAPE).numel()).reshape(SHAPE)
    value = base + 0.01 * base.flip(0)
    given = base.clone()
    parts = codec.encode(value, given)
    if not torch.equal(given, base):
        raise PluginError(f"{described(codec)} writes into the base's tensor in encode.")
    for name, part in parts.items():
        if not isinstance(name, str) or not isinstance(part, torch.Tensor):
            types = f"{type(name).__name__} to {type(part).__name__}"
            raise PluginError(f"{described(codec)} encodes a tensor as a dict of {types}, not of str to Tensor.")
    size, said = sum(part.nbytes for part in parts.values()), codec.nbytes(SHAPE)
    if size > said or (codec.fixed and size < said):
        raise PluginError(
            f"{described(codec)} says in nbytes that a tensor of shape {SHAPE} takes {said} bytes, but it takes {size}."
        )
    try:
        back = codec.decode(parts, base)
    except (ValueError, KeyError) as error:
        raise PluginError(f"{described(codec)} does not decode what it encoded: {first_line(error)}.") from error
    if back.dtype != torch.float32 or back.shape != value.shape:
        raise PluginError(
            f"{described(codec)} decodes a tensor of torch.float32 and shape {SHAPE} as one of {back.dtype} and shape "
            f"{tuple(back.shape)}."
        )
