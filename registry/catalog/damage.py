"""What is wrong with a catalog that was edited by hand, restored in part, or damaged on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Column, Connection, Row, Table, exists, select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DatabaseError
from sqlalchemy.types import TypeDecorator

from .tables import Row as TableRow


def cells(connection: Connection) -> Iterator[str]:
    """Every value that is not what belongs into its column: table, row, column, and what is wrong with it."""
    for table in TableRow.metadata.sorted_tables:
        columns = list(table.columns)
        names = ", ".join(column.name for column in columns)
        read = [_reader(column, connection.dialect) for column in columns]
        for row in connection.exec_driver_sql(f"SELECT {names} FROM {table.name}"):  # noqa: S608  (our own names)
            for column, process, value in zip(columns, read, row, strict=True):
                what = _wrong(column, process, value)
                if what:
                    yield f"{_place(table, row)}, column {column.name}: {what}"


def _reader(column: Column[Any], dialect: Dialect) -> Any:
    """What checks the column's values; None on a database that has done so itself."""
    if dialect.name != "sqlite" and not isinstance(column.type, TypeDecorator):
        return None
    return column.type.dialect_impl(dialect).result_processor(dialect, None)


def _wrong(column: Column[Any], process: Any, value: object) -> str:
    if isinstance(value, bytes):
        return "it is binary"
    try:
        decoded = value if process is None else process(value)
    except (ValueError, TypeError) as error:
        return str(error).partition("\n")[0]
    return "it is empty" if decoded is None and not column.nullable else ""


def references(connection: Connection) -> Iterator[str]:
    """Every row that refers to one that is not there: table, row, column, and the table it refers to."""
    for table in TableRow.metadata.sorted_tables:
        for column in table.columns:
            for key in column.foreign_keys:
                parent = key.column.table.alias()
                there = exists().where(parent.c[key.column.name] == column)
                keys = [known for known in table.columns if known.primary_key or known.name == "name"]
                for row in connection.execute(select(*keys).where(column.is_not(None), ~there)):
                    yield f"{_place(table, row)}, column {column.name}: it refers to no row of {key.column.table.name}"


def pages(connection: Connection) -> Iterator[str]:
    """What SQLite's own check of its file finds; PostgreSQL checks its pages as they are read."""
    if connection.dialect.name != "sqlite":
        return
    try:
        faults = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
    except DatabaseError as error:
        faults = [str(error.orig)]
    yield from (line for line in faults if line != "ok")


def _place(table: Table, row: Row[Any]) -> str:
    """A table and the row's primary key, with its name if it has one."""
    values = row._mapping
    key = ", ".join(str(values[column.name]) for column in table.primary_key)
    name = f" ({values['name']})" if "name" in values else ""
    return f"{table.name}, row {key}{name}"
