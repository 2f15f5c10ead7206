"""Runs migrations, on the connection it is handed or, for developers, on ``alembic -x url=...``."""

from typing import Any

from alembic import context
from sqlalchemy import Connection

from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.catalog.schema import VERSION_TABLE
from taps_registry.registry.catalog.tables import PREFIX, Row


def is_ours(name: str | None, kind: str, parents: Any) -> bool:
    """Look at our own tables only: MLflow's may be beside them."""
    return kind != "table" or (name or "").startswith(PREFIX)


def migrate(connection: Connection) -> None:
    """Run inside the connection's transaction; SQLite's DDL is transactional when it is begun by hand, as ours is."""
    context.configure(
        connection=connection,
        target_metadata=Row.metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def from_url() -> None:
    """A developer's call: open the database that was named on the command line."""
    url = context.get_x_argument(as_dictionary=True).get("url")
    if url is None:
        raise SystemExit("Name the database: alembic -x url=sqlite:///catalog.sqlite ...")
    with Catalog(url).connect_to_write() as connection:
        migrate(connection)


given = context.config.attributes.get("connection")
migrate(given) if given is not None else from_url()
