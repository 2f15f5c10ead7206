"""What every command has in common: where the registry is, how results are printed, and its place in ``--help``.

The only file that reads the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..registry import Registry

HOME = "The registry's folder. Default: $TAPS_REGISTRY_HOME, else the nearest .taps/."
DATABASE = "URL of the catalog, if it is not in the folder. Default: $TAPS_DATABASE_URL."


@dataclass
class Session:
    """What the options said, before or after the name of the command."""

    home: str | None = None
    database: str = ""
    verbose: bool = False

    def where(self) -> dict[str, Any]:
        """Arguments of ``Registry.open`` and its sisters: options first, then the environment."""
        return {
            "home": self.home or os.environ.get("TAPS_REGISTRY_HOME") or None,
            "database": self.database or os.environ.get("TAPS_DATABASE_URL", ""),
        }

    def disabled_plugins(self) -> tuple[str, ...]:
        """Names in ``$TAPS_DISABLED_PLUGINS``, separated by commas."""
        return tuple(name.strip() for name in os.environ.get("TAPS_DISABLED_PLUGINS", "").split(",") if name.strip())

    def open(self) -> Registry:
        """The registry that the options, the environment or the working directory name."""
        from ..registry import Registry

        return Registry.open(**self.where(), disabled_plugins=self.disabled_plugins())


class Verb(click.Command):
    """A command that also takes the options of the whole program after its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(common_options())


def common_options() -> list[click.Parameter]:
    """``--home``, ``--database`` and ``--verbose``, which write into the session."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value:
            setattr(context.ensure_object(Session), str(parameter.name), value)
        return value

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(list(names), expose_value=False, callback=keep, **attributes)

    return [
        option("--home", metavar="DIR", help=HOME),
        option("--database", metavar="URL", help=DATABASE),
        option("--verbose", is_flag=True, help="Show tracebacks of errors and the libraries' logs."),
    ]


format_option = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Output format."
)


def plain(value: Any) -> Any:
    """A record as JSON has it; a ``total`` that is computed is written out."""
    if is_dataclass(value) and not isinstance(value, type):
        members = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return (
            {**members, "total": plain(value.total)} if "total" not in members and hasattr(value, "total") else members
        )
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value
