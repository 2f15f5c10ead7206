"""What the suites of every kind of plugin are held against."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taps_registry.plugins.manager import PluginManager


@pytest.fixture(scope="session")
def built_in() -> Callable[[str], set[str]]:
    """Names of the plugins of a kind, such as ``method``, that this distribution brings."""
    ours = (info for info in PluginManager().plugins() if info.distribution == "taps-registry")
    brought = [what.partition(":")[0].split() for info in ours for what in info.provides]
    return lambda wanted: {name for kind, name in brought if kind == wanted}
