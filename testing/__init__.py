"""Suites that hold a plugin against its contract; what pytest collects is a subclass that says what to test ::

    from my_backbone import MyBackbone
    from taps_registry.testing import ArchitectureTests

    class TestMyBackbone(ArchitectureTests):
        architecture = MyBackbone()
        models = ("my_backbone_tiny",)

A test that fails says which sentence of the contract is broken. Tests that go the whole way, from ``add_base`` to
``load``, need the plugin to be found through its entry point: install the package first, ``pip install -e .`` will do.
"""

from .architectures import ArchitectureTests
from .encodings import CodecTests, EncodingTests
from .methods import MethodTests
from .trackers import Recorded, TrackerTests

__all__ = ["ArchitectureTests", "CodecTests", "EncodingTests", "MethodTests", "Recorded", "TrackerTests"]
