"""From a folder and a catalog to a registry that may be used: the two belong together, and the schema is ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..plugins.manager import PluginManager
from . import home as homes
from .catalog import schema
from .catalog.engine import Catalog
from .catalog.identity import claim, require_same
from .context import Context
from .errors import HomeError, SchemaError


def init(home: Path, database: str, disabled_plugins: Iterable[str]) -> Context:
    """Make a registry, or finish one whose making was interrupted. For errors see ``Registry.init``."""
    address = Catalog(database).address if database else ""
    folder, who = homes.create(home, address)
    if who.database != address:
        raise HomeError(
            f"The registry at {folder.root} has its catalog in {who.database or 'its own folder'}; "
            "it cannot have a second one elsewhere."
        )
    catalog = Catalog(database or folder.database)
    with _closed_on_error(catalog):
        schema.upgrade(catalog)
        claim(catalog, who.id, folder.root)
    return Context(folder, catalog, PluginManager(disabled_plugins))


def open_existing(home: str | Path | None, database: str, disabled_plugins: Iterable[str]) -> Context:
    """Open a registry; without ``home`` the nearest one. For errors see ``Registry.open``."""
    folder, who, catalog = _find(home, database)
    with _closed_on_error(catalog):
        schema.check(catalog)
        require_same(catalog, who.id, folder.root)
    return Context(folder, catalog, PluginManager(disabled_plugins))


def upgrade(home: str | Path | None, database: str) -> tuple[str | None, str]:
    """Bring a catalog's schema to this version's, as ``Registry.upgrade`` does."""
    folder, who, catalog = _find(home, database)
    with _closed_on_error(catalog):
        if schema.current(catalog) is None:
            schema.check(catalog)  # nothing to upgrade: it says what to type
        require_same(catalog, who.id, folder.root)
        revisions = schema.upgrade(catalog)
    catalog.close()
    return revisions


def _find(home: str | Path | None, database: str) -> tuple[homes.Home, homes.Identity, Catalog]:
    """The folder, who it is, and its catalog, which must be there: an empty one would make ``gc`` remove everything."""
    folder = homes.existing(Path(home)) if home else homes.find(Path.cwd())
    who = homes.identity(folder)
    if not database and who.database:
        raise SchemaError(
            f"The catalog of {folder.root} is in {who.database}. Name it with --database or $TAPS_DATABASE_URL."
        )
    if not database and not folder.catalog.exists():
        raise SchemaError(f"The catalog of the registry is missing: {folder.catalog}. Restore it from a backup.")
    return folder, who, Catalog(database or folder.database)


@contextmanager
def _closed_on_error(catalog: Catalog) -> Iterator[None]:
    """Leave no connection behind when a registry cannot be opened."""
    try:
        yield
    except BaseException:
        catalog.close()
        raise
