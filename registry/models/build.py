"""Builds timm models and loads weights into them, with errors that say what to type."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...plugins.architectures import Architecture
from ...plugins.manager import PluginManager
from ..errors import PluginError, SettingsError, WeightsError, first_line
from ..records import InputConfig

logger = logging.getLogger(__name__)
# What initialisation calls on a tensor that is there; erfinv makes truncated normals of what uniform drew.
DRAWING = frozenset({torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default, torch.ops.aten.erfinv_.default})


def parse_arguments(pairs: Iterable[str], option: str = "--model-arg") -> dict[str, Any]:
    """``key=value`` texts as keyword arguments; values are Python literals where they read as one.

    Raises SettingsError for a text without ``=``.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise SettingsError(f"{option} takes key=value, not {pair!r}.")
        try:
            parsed[name] = ast.literal_eval(text.title() if text.lower() in ("true", "false") else text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed


def create(plugins: PluginManager, model: str, arguments: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """``timm.create_model``, or a plugin's model, with torch's global random state deciding what is not loaded.

    Raises:
        WeightsError: if neither has such a model, its arguments do not fit, or pretrained weights cannot be loaded.
    """
    builder = plugins.builder(model)
    if builder is not None:
        return _from_plugin(builder, model, arguments, pretrained=pretrained)
    if ":" not in model and not timm.is_model(model.partition(".")[0]):  # "hf-hub:" and "local-dir:" are timm's to find
        close = get_close_matches(model, timm.list_models(), n=3)
        hint = f" Similar names: {', '.join(close)}." if close else ""
        raise WeightsError(f"timm {timm.__version__} has no model {model!r}.{hint} `timm.list_models()` lists them.")
    try:
        built: nn.Module = timm.create_model(model, pretrained=pretrained, **arguments)
    except Exception as error:  # each model checks its arguments in its own way, each hub client its network
        reason = first_line(error)
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise WeightsError(f"timm cannot build {model} with {dict(arguments)}: {reason}") from error
        raise WeightsError(
            f"The pretrained weights of {model} could not be loaded or downloaded: {reason} "
            "Offline, download them elsewhere and use --weights FILE, or fill the hub cache ($HF_HOME)."
        ) from error
    return built.eval()


def _from_plugin(builder: Architecture, model: str, arguments: Mapping[str, Any], *, pretrained: bool) -> nn.Module:
    if pretrained:
        raise WeightsError(f"{model} comes from the plugin {builder.name!r}, not from timm: use --weights FILE.")
    try:
        return builder.build(model, arguments).eval()
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"The plugin {builder.name!r} cannot build {model} with {dict(arguments)}: {first_line(error)}"
        ) from error


def create_on_meta(plugins: PluginManager, model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A model without memory or values; on the CPU, with a warning, if a plugin's model cannot be built without."""
    try:
        with on_meta():
            return create(plugins, model, arguments)
    except (PluginError, WeightsError, NotImplementedError) as error:
        if plugins.builder(model) is None:
            raise
        with torch.random.fork_rng(devices=[]):
            built = create(plugins, model, arguments)
        logger.warning("%s So %s was built on the CPU, which takes longer.", error, model)
        return built


@contextmanager
def on_meta() -> Iterator[None]:
    """Build models without memory or values, and without moving torch's random state."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), without_drawing():
        yield


@contextmanager
def without_drawing() -> Iterator[None]:
    """Build models without drawing initial weights, which takes longer than all else.

    It is for models whose weights are all loaded afterwards: they hold whatever was in memory. What else would be drawn
    is 0. Leaves torch's random state as it is.
    """
    with _WithoutDrawing():  # type: ignore[no-untyped-call]
        yield


class _WithoutDrawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in DRAWING:
            return func(*args, **(kwargs or {}))
        return args[0] if isinstance(args[0], nn.Parameter) else args[0].zero_()


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a checkpoint into a model, every tensor of it.

    The file is ``.safetensors``, or a pickle (``.pth``, ``.pt``, ``.bin``) that is read with ``weights_only=True``.

    Raises:
        WeightsError: if the file cannot be read, or a tensor is missing, unknown or has the wrong shape.
    """
    from timm.models import load_state_dict

    if not file.is_file():
        raise WeightsError(f"There is no file {file}.")
    try:
        tensors = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # torch, safetensors and pickle each have errors of their own for a broken file
        raise WeightsError(f"{file} cannot be read as weights: {first_line(error)}") from error
    strange = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"{file} contains entries that are not tensors: {', '.join(strange[:4])}.")
    problems = _differences(model, tensors)
    if problems:
        tensors = _converted(model, tensors)
        problems = _differences(model, tensors)
    if problems:
        raise WeightsError(f"{file} does not fit {type(model).__name__}. {'; '.join(problems)}.{_hint(model, tensors)}")
    model.load_state_dict(tensors, strict=True)


def _converted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The checkpoint as timm converts the original authors' ones for this family, if it does."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted: Mapping[str, Tensor] = convert(dict(tensors), model)
    except (KeyError, ValueError, RuntimeError, AttributeError):
        return tensors
    return converted


def _differences(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    wanted = model.state_dict()
    kinds = {
        "missing": [name for name in wanted if name not in tensors],
        "unknown": [name for name in tensors if name not in wanted],
        "wrong shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    return [
        f"{what}: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for what, names in kinds.items()
        if names
    ]


def _hint(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The argument that makes room for the checkpoint's classifier, if that is all that differs."""
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    weight = tensors.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    if weight is None or weight.shape[0] == getattr(model, "num_classes", None):
        return ""
    return f" If its classifier has {weight.shape[0]} classes, add --model-arg num_classes={weight.shape[0]}."


def input_config(model: nn.Module, pixels: int | None = None) -> InputConfig:
    """What timm's configuration of the model says of its input, at another size if ``pixels`` is given."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    channels, height, width = config["input_size"]
    return InputConfig(
        size=(channels, pixels or height, pixels or width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


def has_fixed_size(model: str) -> bool:
    """Whether the model is built for one input size (transformers with position embeddings, say)."""
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)


def check_input(model: nn.Module, config: InputConfig) -> None:
    """Run the model once on zeros. Raises SettingsError if it does not take images of this size."""
    height, width = config.size[1:]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *config.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise SettingsError(
            f"{type(model).__name__} does not take images of {height}x{width} pixels: {first_line(error)}"
        ) from error
