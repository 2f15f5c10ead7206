"""Base models: from timm and a file of weights to a stored object, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...plugins.architectures import Partition
from ...plugins.manager import PluginManager
from ..catalog import bases
from ..catalog.tables import now
from ..context import Context
from ..errors import PluginError, SettingsError, WeightsError
from ..folders import scratch
from ..home import check_name
from ..records import Base, LayerInfo
from ..seeds import check_seed
from ..store.files import checksum
from ..store.tensors import OnDisk, digest, write_tensors
from .build import check_input, create, create_on_meta, has_fixed_size, input_config, load_weights, without_drawing
from .measure import layer_infos, parameters

SHOWN = 4  # tensors that an error names


@dataclass(frozen=True)
class Source:
    """Where a base's weights come from: a file, timm's pretrained ones, or a seeded random initialisation."""

    weights: Path | None = None
    pretrained: bool = False
    seed: int = 0


def add(
    context: Context,
    name: str,
    model: str,
    source: Source,
    arguments: Mapping[str, Any],
    input_size: int | None = None,
    plugin: str | None = None,
) -> Base:
    """Build the model, store its tensors and record it.

    Raises:
        NameTakenError: if there is a base of this name.
        WeightsError: if the model cannot be built or its weights cannot be loaded.
        SettingsError: if it does not take images of this size, or for what is no seed.
        PluginError: if no plugin, or more than one, can take it apart.
    """
    check_name(name, "base")
    check_seed(source.seed)
    with context.catalog.read() as session:
        bases.require_free(session, name)
    arguments = dict(arguments)
    plugins = context.plugins
    if input_size and has_fixed_size(model) and not arguments.get("dynamic_img_size"):
        arguments.setdefault("img_size", input_size)
    built = _build(plugins, model, arguments, source)
    _require_finite(built, model)
    config = input_config(built, input_size)
    check_input(built, config)
    architecture = plugins.architecture(plugin) if plugin else plugins.architecture_for(built)
    partition = plugins.partition(architecture, built)
    tensors = built.state_dict()
    with scratch(context.home) as folder:
        draft = folder / "base.safetensors"
        write_tensors(draft, tensors)
        blake3 = checksum(draft)
        with context.home.lock():
            stored = context.store.put(draft)
            base = Base(
                name=name,
                model=model,
                arguments=arguments,
                plugin=architecture.name,
                plugin_version=plugins.origin(architecture),
                digest=digest(tensors),
                object=stored.digest,
                params=parameters(built),
                backbone_params=parameters(built, without=partition.head),
                bytes=stored.size,
                input=config,
                created=now(),
                layers=layer_infos(partition, tensors),
            )
            with context.catalog.write() as session:
                bases.add(session, base, blake3)
    return base


def _build(plugins: PluginManager, model: str, arguments: Mapping[str, Any], source: Source) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        built = create(plugins, model, arguments, pretrained=source.pretrained)
    if source.weights:
        load_weights(built, source.weights)
    return built


def _require_finite(built: nn.Module, model: str) -> None:
    """Every task would inherit a NaN. Raises WeightsError, naming the tensors that have one, or an infinite value."""
    broken = [
        f"{name} ({count} of {tensor.numel()} values)"
        for name, tensor in built.state_dict().items()
        if tensor.is_floating_point() and (count := int((~tensor.float().isfinite()).sum()))
    ]
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise WeightsError(
            f"The weights of {model} are not finite in {len(broken)} of its tensors: "
            f"{', '.join(broken[:SHOWN])}{more}. Use a checkpoint without NaN or infinite values."
        )


@dataclass(frozen=True)
class Blank:
    """A model of so many classes whose values are all still to be loaded, and how its base's plugin takes it apart."""

    model: nn.Module
    partition: Partition
    classes: int


@dataclass(frozen=True)
class LoadedBase:
    """A base with its tensors, on the CPU, as they are in the store. Nobody writes to them."""

    record: Base
    tensors: Mapping[str, Tensor]
    plugins: PluginManager

    def partition(self, model: nn.Module) -> Partition:
        """How the plugin that laid out the base takes apart a model of its kind."""
        return self.plugins.partition(self.plugins.architecture(self.record.plugin), model)

    def build(self, classes: int) -> nn.Module:
        """A model of the base's kind with so many classes, initialised by torch's global random state."""
        return create(self.plugins, self.record.model, {**self.record.arguments, "num_classes": classes})

    def blank(self, classes: int) -> Blank:
        """A model of the base's kind with so many classes, to be loaded."""
        with without_drawing():
            model = self.build(classes)
        return Blank(model, self.partition(model), classes)

    def fresh_model(self, classes: int, seed: int) -> nn.Module:
        """A model with the base's weights and a new head, initialised under ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build(classes)
        head = set(self.partition(model).head)
        if not head:
            raise SettingsError(f"{self.record.model} has no classifier that a task could replace with its own.")
        state = model.state_dict()
        model.load_state_dict(
            {name: state[name] if name in head else self.tensors[name] for name in state}, strict=True
        )
        return model


def load(context: Context, base: Base) -> LoadedBase:
    """Read a base's tensors from the store.

    Raises:
        PluginError: if the plugin that laid out the base is not here, or now lays the layers out otherwise: what tasks
            have stored would mean something else.
        IntegrityError: if there is nothing to say against that, and they are missing or damaged.
    """

    def on_no_memory() -> nn.Module:
        return create_on_meta(context.plugins, base.model, base.arguments)

    with ThreadPoolExecutor(1) as reader, _being_checked(context, base, on_no_memory, reader, 0) as (loaded, _):
        return loaded


@contextmanager
def load_and_build(
    context: Context, base: Base, classes: int, reader: ThreadPoolExecutor
) -> Iterator[tuple[LoadedBase, Blank]]:
    """Read a base's tensors, and build a model with so many classes to load them into.

    The bytes are checked while that is done and while the block runs: nothing of it is good until it has ended. It ends
    as ``load`` does if they are damaged, whatever else has come of that. The reader checks them, after what it has been
    given to do before.
    """

    def without_values() -> nn.Module:
        with without_drawing():
            return create(context.plugins, base.model, {**base.arguments, "num_classes": classes})

    with _being_checked(context, base, without_values, reader, classes) as found:
        yield found


@contextmanager
def _being_checked(
    context: Context, base: Base, build: Callable[[], nn.Module], reader: ThreadPoolExecutor, classes: int
) -> Iterator[tuple[LoadedBase, Blank]]:
    checked = reader.submit(context.store.get, base.object)
    _require_plugin(context.plugins, base)
    model = build()
    blank = Blank(model, _as_laid_out(context.plugins, base, model), classes)
    try:
        yield LoadedBase(base, OnDisk(context.store.path(base.object)), context.plugins), blank
    finally:
        checked.result()


def _require_plugin(plugins: PluginManager, base: Base) -> None:
    if base.plugin not in plugins.architectures():
        raise PluginError(
            f"The layers of the base {base.name!r} were partitioned by the plugin {base.plugin!r} of "
            f"{base.plugin_version}, which was not found. Install it; `taps-registry plugins` lists what was found."
        )


def _as_laid_out(plugins: PluginManager, base: Base, model: nn.Module) -> Partition:
    """What the base's plugin says now of a model with any number of classes, held against the base's layers."""
    architecture = plugins.architecture(base.plugin)
    partition = plugins.partition(architecture, model)
    now_laid_out = layer_infos(partition, model.state_dict())
    differing = next((pair for pair in zip_longest(base.layers, now_laid_out) if _differ(*pair)), None)
    if differing:
        before, now = map(_shown, differing)
        raise PluginError(
            f"The plugin {base.plugin!r} of {plugins.origin(architecture)} partitions the layers of {base.name!r} "
            f"differently from {base.plugin_version}, which was used when the base was added. The first that differs: "
            f"{before} before, {now} now. Install that version of it, and the version of timm that was used then."
        )
    return partition


def _differ(before: LayerInfo | None, now: LayerInfo | None) -> bool:
    """Whether stored tasks would mean something else; a layer's stage is only a label."""
    if before is None or now is None:
        return True
    return (before.name, before.kind, before.params) != (now.name, now.kind, now.params)


def _shown(layer: LayerInfo | None) -> str:
    return f"{layer.name} ({layer.kind}, {layer.params:,} parameters)" if layer else "none"
