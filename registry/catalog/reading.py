"""A SQLite catalog that cannot be written: another user's, or on a disk that is mounted to be read only."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, event


def writable(path: Path) -> bool:
    """Whether this process may write the database, or make it; SQLite also makes files beside it."""
    return not path.exists() or (os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK))


def only_read(engine: Engine, database: str) -> None:
    """Open the engine's connections so that they need no right to write.

    Reading beside a process that writes needs the files of the write-ahead log, which are there while one does. Without
    them nobody has the catalog open, and it is read as a file that does not change.
    """

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> sqlite3.Connection:
        place = f"file:{quote(str(Path(database).absolute()))}?mode=ro"
        try:
            return _opened(place, options)
        except sqlite3.OperationalError:
            log = Path(f"{database}-wal")
            if log.exists() and log.stat().st_size:
                raise  # what is in the log would be missing
            return _opened(f"{place}&immutable=1", options)


def _opened(uri: str, options: dict[str, Any]) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(uri, **{**options, "uri": True})
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")  # a connection opens nothing yet
    except sqlite3.OperationalError:
        connection.close()
        raise
    return connection
