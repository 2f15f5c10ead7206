"""Printing: tables for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click

from ..registry.units import counted as counted
from ..registry.units import number as number
from ..registry.units import percent as percent
from ..registry.units import size as size
from .session import plain
from .terminal import echo, printable_line

WIDE = 100_000  # columns there are in a file or a pipe: names must not be cut there, and short tables stay short


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(plain(value), indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, total: Sequence[Any] = ()) -> None:
    """A table; columns whose name ends in ``>`` are set to the right. ``total`` is set apart below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    table = Table(box=box.SIMPLE_HEAD, show_footer=bool(total), pad_edge=False)
    footer = [printable_line(str(value)) for value in total] or [""] * len(columns)
    for name, below in zip(columns, footer, strict=True):
        right = name.endswith(">")
        table.add_column(
            name.removesuffix(">"),
            footer=below,
            justify="right" if right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(printable_line(str(value)) for value in row))
    Console(width=width, highlight=False, markup=False).print(table)


def say(text: str) -> None:
    """A line for people, on standard error: standard output is for results."""
    echo(text, err=True)


def time(moment: datetime | None) -> str:
    """In the user's own zone, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else ""
