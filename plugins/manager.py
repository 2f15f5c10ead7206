"""Finds plugins through their entry points, asks them what they bring, and answers by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from . import spec
from .architectures import Architecture, Partition
from .encodings import COMPRESSED, Codec, Encoding, Form
from .errors import PartitionError, PluginError, first_line
from .guard import described, remember
from .options import mistakes, options_of
from .trackers import Tracker

if TYPE_CHECKING:
    from torch import nn

    from .methods import Method

GROUP = "taps_registry"
HOOKS = ("register_architectures", "register_methods", "register_encodings", "register_trackers")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

logger = logging.getLogger(__name__)

Contribution = TypeVar("Contribution")


@dataclass(frozen=True)
class PluginInfo:
    """A plugin as ``taps-registry plugins`` lists it.

    Attributes:
        name: of its entry point.
        distribution: the package that brings it.
        version: of that package.
        hooks: which hooks it implements.
        provides: what it registered, such as ``method taps``, each with its summary if it has one.
        state: ``active``, ``disabled``, or ``failed: why``.
    """

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    state: str = "active"


@dataclass
class Shelf(Generic[Contribution]):
    """What was registered of one kind, by name, and who brought it."""

    kind: str
    items: dict[str, Contribution] = field(default_factory=dict)
    owners: dict[str, PluginInfo] = field(default_factory=dict)
    contested: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, item: Contribution, owner: PluginInfo) -> None:
        """Take one contribution. A name that two packages claim is nobody's: the rest of both stays."""
        if name in self.owners:
            first = self.owners[name]
            self.items.pop(name, None)
            self.contested[name] = (
                f"Two plugins bring the {self.kind} {name!r}: {first.name!r} of {first.distribution} and "
                f"{owner.name!r} of {owner.distribution}. Uninstall one, or name it in $TAPS_DISABLED_PLUGINS."
            )
            return
        self.items[name] = item
        self.owners[name] = owner

    def get(self, name: str) -> Contribution:
        if name not in self.items:
            raise self.missing(name)
        return self.items[name]

    def missing(self, name: str, of: type = object, kind: str = "") -> PluginError:
        """The error that names what there is in its place, of a class; ``kind`` is what a user calls that."""
        if name in self.contested:
            return PluginError(self.contested[name])
        there = sorted(other for other, item in self.items.items() if isinstance(item, of))
        return PluginError(
            f"There is no {kind or self.kind} {name!r}. There are: {', '.join(there) or 'none'}. "
            "`taps-registry plugins` lists what was found and what failed to load."
        )


class PluginManager:
    """All plugins of this environment, loaded at the first question.

    Args:
        disabled: names of entry points that are to be passed over.
    """

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self.disabled = frozenset(disabled)

    def architecture(self, name: str) -> Architecture:
        """The architecture plugin of this name. Raises PluginError if there is none."""
        return self._loaded.architectures.get(name)

    def architectures(self) -> tuple[str, ...]:
        """Names of all architecture plugins."""
        return tuple(sorted(self._loaded.architectures.items))

    def builder(self, model: str) -> Architecture | None:
        """The architecture plugin that builds models of this name itself, if there is one.

        Raises:
            PluginError: if there is more than one.
        """
        builders = [plugin for plugin in self._loaded.architectures.items.values() if model in plugin.models]
        if len(builders) > 1:
            raise PluginError(
                f"More than one plugin builds {model!r}: {', '.join(plugin.name for plugin in builders)}."
            )
        return builders[0] if builders else None

    def origin(self, architecture: Architecture) -> str:
        """The package that brought an architecture plugin, with its version, such as ``taps-registry 0.1.0``."""
        owner = self._loaded.architectures.owners[architecture.name]
        return f"{owner.distribution} {owner.version}"

    def package(self, kind: str, name: str) -> str:
        """The package that brought a ``method`` or ``encoding`` (a form), with its version; empty if nobody did."""
        shelves: dict[str, Shelf[Any]] = {"method": self._loaded.methods, "encoding": self._loaded.encodings}
        shelf = shelves[kind]
        owner = shelf.owners.get(name)
        return f"{owner.distribution} {owner.version}" if owner else ""

    def method(self, name: str) -> Method:
        """The method of this name. Raises PluginError if there is none."""
        return self._loaded.methods.get(name)

    def methods(self) -> tuple[str, ...]:
        """Names of all methods."""
        return tuple(sorted(self._loaded.methods.items))

    def encoding(self, name: str) -> Encoding:
        """The encoding of this name, which may end with ``+zstd``.

        Raises:
            PluginError: if there is none, or it is a form that is no encoding to choose.
        """
        inner, compressed = _taken_apart(name)
        form = self._loaded.encodings.items.get(inner)
        if not isinstance(form, Encoding):
            raise self._loaded.encodings.missing(name, Encoding)
        if not compressed:
            return form
        from .encodings.zstd import CompressedEncoding

        return CompressedEncoding(form)

    def encodings(self) -> tuple[str, ...]:
        """Names of all encodings, without those that end with ``+zstd``."""
        items = self._loaded.encodings.items
        return tuple(sorted(name for name, form in items.items() if isinstance(form, Encoding)))

    def form(self, name: str) -> Form:
        """What decodes tensors stored in this form, which may end with ``+zstd``.

        Raises:
            PluginError: if there is none.
        """
        inner, compressed = _taken_apart(name)
        form = self._loaded.encodings.items.get(inner)
        if form is None or (compressed and not isinstance(form, Codec)):
            raise self._loaded.encodings.missing(name, Codec if compressed else Form, kind="form")
        if not compressed:
            return form
        assert isinstance(form, Codec)
        from .encodings.zstd import Compressed

        return Compressed(form)

    def tracker(self, name: str) -> Tracker:
        """The tracker of this name. Raises PluginError if there is none."""
        return self._loaded.trackers.get(name)

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin that was found, by name, with its state."""
        return tuple(sorted(self._loaded.infos, key=lambda info: info.name))

    def architecture_for(self, model: nn.Module) -> Architecture:
        """The one plugin that knows this model, or a fallback.

        Raises:
            PluginError: if more than one, or none, matches.
        """
        known = self._loaded.architectures.items.values()
        for fallback in (False, True):
            matching = [plugin for plugin in known if plugin.fallback is fallback and self._matches(plugin, model)]
            if len(matching) > 1:
                names = ", ".join(sorted(plugin.name for plugin in matching))
                raise PluginError(
                    f"More than one plugin knows {type(model).__name__}: {names}. Choose with --plugin NAME."
                )
            if matching:
                return matching[0]
        raise PluginError(f"No plugin knows {type(model).__name__}; is the generic one disabled?")

    @staticmethod
    def _matches(plugin: Architecture, model: nn.Module) -> bool:
        """Whether a plugin knows the model. One that cannot say is passed over, and a note says so."""
        try:
            return plugin.matches(model)
        except PluginError as error:
            logger.warning("%s It was passed over.", error)
            return False

    def partition(self, architecture: Architecture, model: nn.Module) -> Partition:
        """The model taken apart, checked: every parameter and buffer is in exactly one place.

        Raises:
            PartitionError: naming the plugin, if it is not.
        """
        try:
            return architecture.partition(model).check(model)
        except PartitionError as error:
            raise PartitionError(f"{described(architecture)} made a mistake. {error}") from error

    @cached_property
    def _loaded(self) -> _Loaded:
        loaded = _Loaded()
        points = entry_points(group=GROUP)
        for point in sorted(points, key=lambda point: not _is_ours(point)):
            rivals = [other for other in points.select(name=point.name) if other.value != point.value]
            loaded.add(point, disabled=point.name in self.disabled, rivals=[] if _is_ours(point) else rivals)
        return loaded


class _Loaded:
    """What loading all entry points gave."""

    def __init__(self) -> None:
        self.pluggy = pluggy.PluginManager(GROUP)
        self.pluggy.add_hookspecs(spec)
        self.infos: list[PluginInfo] = []
        self.architectures = Shelf[Architecture]("architecture")
        self.methods: Shelf[Method] = Shelf("method")
        self.encodings = Shelf[Form]("encoding")
        self.trackers = Shelf[Tracker]("tracker")
        self.ours = ""  # the package that brings the built-in ones
        self.packages: dict[Distribution | None, tuple[str, str]] = {}  # parsing metadata takes longer than the rest

    def add(self, point: EntryPoint, *, disabled: bool, rivals: Sequence[EntryPoint] = ()) -> None:
        """Load one plugin. One that raises is a ``failed`` line in the list, and nobody else's trouble.

        Args:
            rivals: others that are called the same.
        """
        if point.dist not in self.packages:
            self.packages[point.dist] = _distribution(point)
        info = PluginInfo(point.name, *self.packages[point.dist])
        if _is_ours(point):
            self.ours = info.distribution
        if disabled:
            self.infos.append(replace(info, state="disabled"))
            return
        if self.pluggy.has_plugin(point.name) and not rivals:
            return  # one plugin, found twice on the path
        try:
            if rivals:
                others = " and ".join(sorted({_distribution(rival)[0] for rival in rivals}))
                raise PluginError(f"{others} brings a plugin of this name too: uninstall one of them")
            plugin = point.load()
            self.pluggy.register(plugin, name=point.name)
            registrar, hooks = self._ask(point.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (a stranger's code must not stop the others)
            if self.pluggy.has_plugin(point.name):
                self.pluggy.unregister(name=point.name)
            said = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {first_line(error)}"
            self.infos.append(replace(info, state=f"failed: {said}"))
            return
        for shelf, name, item in registrar.brought:
            shelf.put(name, item, info)
            if not type(item).__module__.startswith(f"{GROUP}."):  # a stranger may bring an object of a class of ours
                remember(item, f"{info.distribution} {info.version}")
        self.infos.append(replace(info, hooks=hooks, provides=registrar.described()))

    def _ask(self, name: str) -> tuple[_BoundRegistrar, tuple[str, ...]]:
        """What one plugin brings, put on no shelf yet, and the hooks it has."""
        others = [plugin for other, plugin in self.pluggy.list_name_plugin() if other != name]
        implemented = self.pluggy.get_hookcallers(self.pluggy.get_plugin(name)) or []
        if unknown := sorted(caller.name for caller in implemented if not caller.has_spec()):
            raise PluginError(f"it implements {', '.join(unknown)}, but the hooks are {', '.join(HOOKS)}")
        if not implemented:
            raise PluginError(f"it implements no hook; they are {', '.join(HOOKS)}, each under @hookimpl")
        registrar = _BoundRegistrar(self)
        for caller in implemented:
            self.pluggy.subset_hook_caller(caller.name, others)(registrar=registrar)
        return registrar, tuple(sorted(caller.name for caller in implemented))


class _BoundRegistrar:
    """The registrar one plugin gets: it collects, so that a plugin that fails half-way brings nothing."""

    def __init__(self, loaded: _Loaded) -> None:
        self.loaded = loaded
        self.brought: list[tuple[Shelf[Any], str, Any]] = []

    def architecture(self, architecture: Architecture) -> None:
        self._take(self.loaded.architectures, architecture, Architecture)
        if isinstance(architecture.models, str):
            raise PluginError(
                f"the models of its architecture {architecture.name} must be a set of names, not one name"
            )
        if architecture.models:
            import timm

            if taken := [model for model in architecture.models if timm.is_model(model.partition(".")[0])]:
                raise PluginError(f"it builds {', '.join(taken)}, and timm has models of these names: choose others")

    def method(self, method: Method) -> None:
        from .methods import Method, MethodSettings

        self._take(self.loaded.methods, method, Method)
        wrong = mistakes(method.options)
        if not wrong:
            taken = sorted(set(options_of(method.options)) & {known.name for known in fields(MethodSettings)})
            wrong = [f"{name} is an option of every method" for name in taken]
        if wrong:
            raise PluginError(f"the options of its method {method.name} are wrong: {'; '.join(wrong)}")

    def encoding(self, encoding: Form) -> None:
        self._take(self.loaded.encodings, encoding, Form)

    def tracker(self, tracker: Tracker) -> None:
        self._take(self.loaded.trackers, tracker, Tracker)

    def _take(self, shelf: Shelf[Any], item: Any, contract: type) -> None:
        """Raises PluginError for what does not fulfil the contract."""
        name = getattr(item, "name", "")
        if not isinstance(item, contract):
            given = f"the class {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"
            raise PluginError(f"registrar.{shelf.kind} takes an instance of {contract.__name__}, and was given {given}")
        wanted = ("name", "summary") if "summary" in _annotations(contract) else ("name",)
        for attribute in wanted:
            value = getattr(item, attribute, None)
            if not isinstance(value, str) or not value.strip() or "\n" in value:
                raise PluginError(f"the {attribute} of its {shelf.kind} {type(item).__name__} must be one line of text")
        if not NAME.fullmatch(name):
            raise PluginError(f"its {shelf.kind} is called {name!r}: use letters, digits, '.', '_' and '-'")
        first = shelf.owners.get(name)
        if first and first.distribution == self.loaded.ours:
            raise PluginError(f"it brings the {shelf.kind} {name!r}, which {first.distribution} has already")
        self.brought.append((shelf, name, item))

    def described(self) -> tuple[str, ...]:
        """Kind, name and summary of each thing it brought."""
        lines = ((f"{_kind(shelf, item)} {name}", getattr(item, "summary", "")) for shelf, name, item in self.brought)
        return tuple(f"{what}: {summary}" if summary else what for what, summary in lines)


def _kind(shelf: Shelf[Any], item: object) -> str:
    """What a contribution is to a user: a form that a method keeps to itself is no encoding to choose."""
    return "form" if isinstance(item, Form) and not isinstance(item, Encoding) else shelf.kind


def _annotations(contract: type) -> frozenset[str]:
    """Names of the attributes that a contract and those above it declare."""
    return frozenset(name for cls in contract.__mro__ for name in vars(cls).get("__annotations__", ()))


def _taken_apart(name: str) -> tuple[str, bool]:
    """The name of an encoding without its ``+zstd``, and whether it had one."""
    return name.removesuffix(COMPRESSED), name.endswith(COMPRESSED)


def _is_ours(point: EntryPoint) -> bool:
    return point.value.startswith(f"{GROUP}.")


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the package that brings an entry point."""
    if point.dist is None:
        return "unknown", "unknown"
    metadata = point.dist.metadata
    return metadata["Name"], metadata["Version"]
