"""The hooks, and the registrar that they are handed. This is all that a plugin has to know of us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from .architectures import Architecture
    from .encodings import Form
    from .methods import Method
    from .trackers import Tracker

hookspec = pluggy.HookspecMarker("taps_registry")
hookimpl = pluggy.HookimplMarker("taps_registry")


class Registrar(Protocol):
    """Takes what a plugin brings; each name may be taken once."""

    def architecture(self, architecture: Architecture) -> None: ...

    def method(self, method: Method) -> None: ...

    def encoding(self, encoding: Form) -> None: ...

    def tracker(self, tracker: Tracker) -> None: ...


@hookspec
def register_architectures(registrar: Registrar) -> None:
    """Say how families of models are taken apart into layers, norms and head."""


@hookspec
def register_methods(registrar: Registrar) -> None:
    """Offer ways to adapt a model to a task, for ``add-task --method``."""


@hookspec
def register_encodings(registrar: Registrar) -> None:
    """Offer ways to store the layers that a task changed, for ``add-task --encoding``, and forms that methods use."""


@hookspec
def register_trackers(registrar: Registrar) -> None:
    """Offer places that follow a run, for ``add-task --tracker``."""
