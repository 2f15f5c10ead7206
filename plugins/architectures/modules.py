"""What a module is: one that normalises, one that computes with a matrix or kernel, or neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import nn


def own_tensors(path: str, module: nn.Module) -> tuple[str, ...]:
    """State-dict names of what the module itself owns: matrices first, then other parameters, then buffers."""
    first = matrices(module)
    others = [name for name, _ in module.named_parameters(recurse=False) if name not in first]
    fleeting = module._non_persistent_buffers_set
    buffers = [name for name, _ in module.named_buffers(recurse=False) if name not in fleeting]
    return tuple(f"{path}.{name}" if path else name for name in (*first, *others, *buffers))


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalises, by the name of its class, whatever shape its weights have.

    That holds for torch's norms, timm's and most people's own. An ``Affine`` stands where others have a norm. A block
    that is named for having no norms owns other modules, and a convolution or linear with normalised weights is one.
    """
    name = type(module).__name__.lower()
    if not ("norm" in name or name == "affine") or "conv" in name or "linear" in name:
        return False
    return not any(list(child.parameters()) for child in module.children())


def matrices(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's own parameters that map features to features: ``weight``, ``in_proj_weight``, ``w_g``, ...

    Tokens, position tables, scales and biases have several dimensions too, at times, but are not called weights. The
    weight of an ``Embedding`` is such a table.
    """
    from torch import nn

    if isinstance(module, nn.Embedding):
        return ()
    parameters = module._parameters.items()
    return tuple(name for name, tensor in parameters if tensor is not None and tensor.ndim >= 2 and _is_weight(name))


def _is_weight(name: str) -> bool:
    return "weight" in name or "kernel" in name or name.startswith("w_")


def kind(module: nn.Module) -> str:
    """``conv`` for kernels over one or more spatial dimensions, ``linear`` for matrices.

    A conditional convolution keeps its kernels flat, one expert a row, so its class has to tell.
    """
    weight = module.get_parameter(matrices(module)[0])
    return "conv" if weight.ndim > 2 or "conv" in type(module).__name__.lower() else "linear"


def is_fused_qkv(module: Any, path: str) -> TypeGuard[nn.Linear]:
    """Whether this is a linear of timm's that gives queries, keys and values at once, as wide as one another."""
    from torch import nn

    return path.endswith(".qkv") and isinstance(module, nn.Linear) and module.out_features % 3 == 0
