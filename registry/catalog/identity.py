"""Which folder of objects a catalog belongs to: ``gc`` with the wrong pair would remove everything."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import inspect, select

from ..errors import HomeError
from .engine import Catalog
from .tables import RegistryRow


def claim(catalog: Catalog, identity: str, home: Path) -> None:
    """Write the registry's id into a new catalog. Raises HomeError if the catalog has another one."""
    with catalog.write() as session:
        if session.scalar(select(RegistryRow.id)) is None:
            session.add(RegistryRow(id=identity))
    require_same(catalog, identity, home)


def require_same(catalog: Catalog, identity: str, home: Path) -> None:
    """Raises HomeError if the catalog belongs to another registry than the folder."""
    with catalog.read() as session:
        has_row = inspect(session.connection()).has_table(RegistryRow.__tablename__)
        stored = session.scalar(select(RegistryRow.id)) if has_row else None
    if stored != identity:
        raise HomeError(
            f"The catalog at {catalog.address} belongs to a different registry than {home}. Check --home and "
            "--database."
        )
