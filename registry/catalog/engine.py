"""Connections to the catalog: SQLite as it should be set up, PostgreSQL through psycopg, one writer at a time."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy import exc as sql
from sqlalchemy.orm import Session

from ..errors import BusyError, IntegrityError, SettingsError, StorageError
from ..secrets import masked, without_secrets
from .forks import keep_apart
from .reading import only_read, writable

BUSY_SECONDS = 60
MISTAKES = (sql.ProgrammingError, sql.IntegrityError, sql.DataError, sql.NotSupportedError)  # ours, or damaged rows
WRITER_LOCK = 0x7461707372656731  # "tapsreg1": the advisory lock of our writers on PostgreSQL


class Catalog:
    """A database that holds our tables: ``sqlite:////srv/catalog.sqlite``, ``postgresql://user@host/database``.

    Raises:
        SettingsError: if the URL is not one of a database we can use.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = parse(url)
        try:
            self.engine = create_engine(self.url, pool_pre_ping=True)  # servers drop what idles through an epoch
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"The driver for {self.address} is not installed ({error}). Type: pip install 'taps-registry[postgres]'"
            ) from error
        except sql.NoSuchModuleError as error:
            raise SettingsError(
                f"There is no driver {self.url.drivername}. Leave the driver out: {self.url.get_backend_name()}://..."
            ) from error
        if self.engine.dialect.name == "sqlite":
            if self.url.database and not writable(Path(self.url.database)):
                only_read(self.engine, self.url.database)
            _set_up_sqlite(self.engine)
        keep_apart(self.engine)

    @property
    def address(self) -> str:
        """The URL with its passwords hidden."""
        return masked(self.url.render_as_string(hide_password=True))

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that sees one state of the catalog and holds up nobody."""
        with self._explained(), self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":  # by default each statement there sees a state of its own
                connection.execution_options(isolation_level="REPEATABLE READ")
            with Session(connection) as session:
                yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that no other writer runs beside; it commits at the end of the block."""
        with self.connect_to_write() as connection, Session(connection) as session:
            yield session
            session.flush()

    @contextmanager
    def connect_to_write(self) -> Iterator[Connection]:
        """The connection under ``write``: checks and changes in it cannot race with another process's."""
        with (
            self._explained(),
            self.engine.connect().execution_options(taps_write=True) as connection,
            connection.begin(),
        ):
            if self.engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What a database refuses for reasons of its own becomes an error of ours; our mistakes stay tracebacks."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, sql.InvalidRequestError, *MISTAKES) as error:
            if isinstance(error, sql.DatabaseError) and error.statement is None:  # of connecting: the URL's arguments
                raise self._unavailable(error) from error
            self._require_sound(error)
            raise
        except sql.DatabaseError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: sql.DatabaseError) -> BusyError | StorageError:
        """What a database says, in one line and without passwords."""
        url = self.url.render_as_string(hide_password=False)
        reason = without_secrets(str(error.orig).strip().splitlines()[0], url)
        if "database is locked" in reason:
            return BusyError(
                f"Another process has been writing to {self.address} for {BUSY_SECONDS} seconds. Try again."
            )
        return StorageError(f"The catalog at {self.address} is not available: {reason}")

    def _require_sound(self, error: Exception) -> None:
        """Raises IntegrityError if something in the catalog is not what belongs there, which may well be the reason."""
        from . import damage

        fault = ""
        with suppress(sql.DatabaseError), self.engine.connect() as connection:  # without our tables: it says so itself
            fault = next(chain(damage.cells(connection), damage.references(connection)), "")
        if fault:
            raise IntegrityError(
                f"The catalog at {self.address} is damaged, in {fault}. `taps-registry verify --deep` lists all of it; "
                "restore the catalog from a backup."
            ) from error


def parse(url: str | URL) -> URL:
    """The URL of a catalog, with psycopg as PostgreSQL's driver. Raises SettingsError for anything else."""
    try:
        parsed = make_url(url)
        if "@" in (parsed.host or ""):
            raise ValueError("an @ in a password")
    except (sql.ArgumentError, ValueError) as error:  # not repeated, as there may be a password in it
        raise SettingsError(
            "What --database says is not a database URL. Examples: sqlite:////srv/catalog.sqlite, "
            "postgresql://user@host/database"
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise SettingsError(f"The catalog can be stored in SQLite or PostgreSQL, not in {parsed.get_backend_name()}.")
    return parsed


def _set_up_sqlite(engine: Engine) -> None:
    """Foreign keys, readers beside a writer, patience, and transactions that begin where we say."""

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        connection.isolation_level = None  # sqlite3 must not begin transactions by itself: see below
        for pragma in ("foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
            connection.execute(f"PRAGMA {pragma}")
        _write_ahead(connection)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock before it reads: one that read first could find the lock taken and its view stale.
        writes = connection.get_execution_options().get("taps_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Give a new database its write-ahead log. Where two do so at once, SQLite refuses one without any patience."""
    last = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                return  # whoever writes it has done so
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(0.01)
