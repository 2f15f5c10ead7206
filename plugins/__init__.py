"""Write a plugin.

A plugin is a module with one or more of the four hooks of ``plugins.spec``, found through the entry-point group
``taps_registry``. The built-in ones under ``architectures/``, ``methods/``, ``encodings/`` and ``trackers/`` come
through the same door, so any of them is an example. An architecture of your own takes this module ::

    # my_backbone.py
    from taps_registry.plugins import Generic, hookimpl

    class MyBackbone(Generic):
        name = "my-backbone"
        fallback = False

        def matches(self, model):
            return type(model).__name__ == "MyBackbone"

        def stage(self, path):                      # what hard sharing and reports group by
            return ".".join(path.split(".")[:2])

    @hookimpl
    def register_architectures(registrar):
        registrar.architecture(MyBackbone())

and these lines of your ``pyproject.toml`` ::

    [project.entry-points.taps_registry]
    my-backbone = "my_backbone"

``taps-registry plugins`` then lists it. The contracts, each a short abstract class at the door of its room:

==========================  ============================================================================
``register_architectures``  ``Architecture``: which tensors are layers, norms, head and shared; ``Generic``
                            walks through any timm model, ``build`` makes models that are not timm's
``register_methods``        ``Method``: what trains and what is stored; its ``Adaptation`` does the work
                            around the optimiser's step. ``FixedSet`` names tensors, ``FixedUnits``
                            computes weights from factors, ``Method.extend`` adds modules
``register_encodings``      ``Encoding``: how one changed layer becomes tensors of the artifact;
                            ``Codec``: how norms and vectors do beside it; ``Form``: how the factors of one
                            method become a weight again
``register_trackers``       ``Tracker``: where parameters, metrics and pictures of a run go
==========================  ============================================================================

``taps_registry.testing`` has a suite of tests for each contract, to be subclassed in the plugin's own tests.
Whole packages to copy are in ``examples/`` of the repository, ``taps-convnext`` and ``taps-ssf``; docs/plugins.md shows
them and says the rest.

Import torch, timm and other heavy packages inside functions or at the top of a module that only ``add-task`` needs;
listing tasks and costs loads no plugin at all.
"""

from typing import TYPE_CHECKING, Any

from .architectures import Architecture, Layer, Partition, Stage
from .errors import PartitionError, PluginError, TapsError
from .options import Options, option
from .spec import Registrar, hookimpl

if TYPE_CHECKING:
    from .architectures.generic import Generic as Generic
    from .encodings import Codec as Codec
    from .encodings import Encoding as Encoding
    from .encodings import Form as Form
    from .encodings import expect as expect
    from .encodings.low_rank import LowRankForm as LowRankForm
    from .methods import Adaptation as Adaptation
    from .methods import Delta as Delta
    from .methods import Factors as Factors
    from .methods import FixedSet as FixedSet
    from .methods import LayerState as LayerState
    from .methods import Live as Live
    from .methods import Method as Method
    from .methods import MethodSettings as MethodSettings
    from .methods import Size as Size
    from .methods import Stored as Stored
    from .methods import head_and_norms as head_and_norms
    from .methods.reparametrised import FixedUnits as FixedUnits
    from .methods.reparametrised import Reparametrised as Reparametrised
    from .methods.reparametrised import Unit as Unit
    from .methods.reparametrised import stored as stored
    from .methods.reparametrised import units_of as units_of
    from .trackers import RunInfo as RunInfo
    from .trackers import TrackedRun as TrackedRun
    from .trackers import Tracker as Tracker

__all__ = [
    "Adaptation",
    "Architecture",
    "Codec",
    "Delta",
    "Encoding",
    "Factors",
    "FixedSet",
    "FixedUnits",
    "Form",
    "Generic",
    "Layer",
    "LayerState",
    "Live",
    "LowRankForm",
    "Method",
    "MethodSettings",
    "Options",
    "Partition",
    "PartitionError",
    "PluginError",
    "Registrar",
    "Reparametrised",
    "RunInfo",
    "Size",
    "Stage",
    "Stored",
    "TapsError",
    "TrackedRun",
    "Tracker",
    "Unit",
    "expect",
    "head_and_norms",
    "hookimpl",
    "option",
    "stored",
    "units_of",
]

_ROOMS = {
    "units_of": "methods.reparametrised",
    "stored": "methods.reparametrised",
    "expect": "encodings",
    "head_and_norms": "methods",
    "Live": "methods",
    "Adaptation": "methods",
    "Codec": "encodings",
    "Delta": "methods",
    "Encoding": "encodings",
    "Factors": "methods",
    "FixedSet": "methods",
    "FixedUnits": "methods.reparametrised",
    "Form": "encodings",
    "Generic": "architectures.generic",
    "LayerState": "methods",
    "Method": "methods",
    "MethodSettings": "methods",
    "Reparametrised": "methods.reparametrised",
    "RunInfo": "trackers",
    "Size": "methods",
    "Stored": "methods",
    "LowRankForm": "encodings.low_rank",
    "TrackedRun": "trackers",
    "Tracker": "trackers",
    "Unit": "methods.reparametrised",
}


def __getattr__(name: str) -> Any:
    """Open the room that holds ``name`` when it is asked for: some of them import torch."""
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
