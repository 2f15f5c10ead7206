"""One order of names in every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.expression import ClauseList


class ByName(ClauseList):
    """``ORDER BY`` these columns of text by code points, as Python and SQLite sort them.

    PostgreSQL sorts as the server's locale has it: ``B`` before ``a`` on one machine, after it on another.
    """

    inherit_cache = True

    def __init__(self, *columns: InstrumentedAttribute[str]) -> None:
        super().__init__(*columns)


@compiles(ByName)
def _plain(element: ByName, compiler: Any, **options: Any) -> str:
    return ", ".join(compiler.process(column, **options) for column in element.clauses)


@compiles(ByName, "postgresql")
def _by_code_points(element: ByName, compiler: Any, **options: Any) -> str:
    return ", ".join(f'{compiler.process(column, **options)} COLLATE "C"' for column in element.clauses)
