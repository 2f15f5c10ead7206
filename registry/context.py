"""What every verb of the registry works with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..plugins.manager import PluginManager
from .catalog import bases
from .catalog.engine import Catalog
from .home import Home

if TYPE_CHECKING:
    from .store.objects import ObjectStore


@dataclass(frozen=True)
class Context:
    """A registry's folder, its catalog, and the plugins of this environment."""

    home: Home
    catalog: Catalog
    plugins: PluginManager

    @cached_property
    def store(self) -> ObjectStore:
        """The objects in the folder."""
        from .store.objects import ObjectStore

        return ObjectStore(self.home.objects, self._checksum)

    def _checksum(self, digest: str) -> str | None:
        with self.catalog.read() as session:
            return bases.checksum(session, digest)
