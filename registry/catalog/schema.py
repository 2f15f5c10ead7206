"""Which revision of the schema a catalog has, and how it gets to ours."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, inspect, text

from ..errors import SchemaError
from .engine import Catalog

REVISION = "r0004"  # the newest one under migrations/versions (a test holds them together)
VERSION_TABLE = "taps_alembic_version"


def current(catalog: Catalog) -> str | None:
    """The catalog's revision; None if it has none of our tables."""
    with catalog.read() as session:
        return _current(session.connection())


def check(catalog: Catalog) -> None:
    """Return if the catalog has the revision that this version works with.

    Raises:
        SchemaError: naming both revisions and what to type.
    """
    found = current(catalog)
    if found == REVISION:
        return
    if found is None:
        raise SchemaError(f"{catalog.address} contains no catalog yet. Type: taps-registry init")
    if found > REVISION:
        raise SchemaError(
            f"The catalog at {catalog.address} has revision {found}, but this version needs {REVISION}. "
            "Type: pip install --upgrade taps-registry"
        )
    raise SchemaError(
        f"The catalog at {catalog.address} has revision {found}, but this version needs {REVISION}. "
        "Type: taps-registry upgrade"
    )


def upgrade(catalog: Catalog) -> tuple[str | None, str]:
    """Bring the catalog to our revision in one transaction; processes that try at once take turns.

    Returns:
        The revisions before and after.

    Raises:
        SchemaError: if the catalog is newer than this version.
    """
    from alembic import command
    from alembic.util import CommandError

    with catalog.connect_to_write() as connection:
        before = _current(connection)
        if before is not None and before > REVISION:
            raise SchemaError(
                f"The catalog at {catalog.address} has revision {before}, newer than this version's {REVISION}. "
                "Type: pip install --upgrade taps-registry"
            )
        try:
            command.upgrade(alembic_config(connection), REVISION)
        except CommandError as error:
            raise SchemaError(f"The catalog at {catalog.address} has the unknown revision {before}: {error}") from error
    return before, REVISION


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for our migrations, working inside the caller's transaction."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "taps_registry:migrations")
    config.attributes["connection"] = connection
    return config


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608  (a constant)
    return revision
