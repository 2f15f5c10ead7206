"""Which revision of the schema a catalog has, and how it gets to ours."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, inspect, text

from ..errors import SchemaError
from .engine import Catalog

REVISION = "r0001"  # the one under migrations/versions (a test holds them together)
VERSION_TABLE = "taps_alembic_version"


def current(catalog: Catalog) -> str | None:
    """The catalog's revision; None if it has none of our tables."""
    with catalog.read() as session:
        return _current(session.connection())


def check(catalog: Catalog) -> None:
    """Raises SchemaError, naming both revisions and what to type, if this version works with another one."""
    revision = current(catalog)
    if revision is None:
        raise SchemaError(f"{catalog.address} contains no catalog yet. Type: taps-registry init")
    _require_known(catalog, revision)


def upgrade(catalog: Catalog) -> tuple[str | None, str]:
    """Bring the catalog to our revision in one transaction; processes that try at once take turns.

    Returns the revisions before and after. Raises SchemaError if this version does not know the catalog's revision.
    """
    from alembic import command

    with catalog.connect_to_write() as connection:
        before = _current(connection)
        _require_known(catalog, before)
        command.upgrade(alembic_config(connection), REVISION)
    return before, REVISION


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for our migrations, working inside the caller's transaction."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "taps_registry:migrations")
    config.attributes["connection"] = connection
    return config


def _require_known(catalog: Catalog, revision: str | None) -> None:
    if revision not in (None, REVISION):
        raise SchemaError(
            f"The catalog at {catalog.address} has revision {revision}, but this version knows only {REVISION}. "
            "Type: pip install --upgrade taps-registry"
        )


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608  (a constant)
    return revision
