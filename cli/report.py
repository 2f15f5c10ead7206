"""The report: report."""

from __future__ import annotations

from pathlib import Path

import click

from .output import say, size
from .session import Session, Verb


@click.command(cls=Verb)
@click.option("--base", metavar="B", help="Only this base.")
@click.option(
    "-o",
    "--output",
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="Output file; - for standard output.",
)
@click.option("--force", is_flag=True, help="Replace the file even if it is not a report.")
@click.pass_obj
def report(session: Session, base: str | None, output: str, force: bool) -> None:
    """Write an HTML page: which layers each task stores, what it costs, and its accuracy.

    The file needs neither network nor server. An earlier report is replaced, any other file only with --force.

    \b
    Examples:
      taps-registry report
      taps-registry report --base r50 -o r50.html
    """
    from ..registry.errors import SettingsError
    from ..registry.home import require_outside
    from ..registry.reporting.page import is_report
    from ..registry.store.files import write_file

    path = None if output == "-" else Path(output)
    if path is not None and path.exists() and not force and not is_report(path):
        raise SettingsError(f"{path} exists and is not a report. Choose another -o, or replace it with --force.")
    if path is not None:
        require_outside(path)
    with session.open() as registry:
        page = registry.report(base=base)
    if path is None:
        return click.echo(page, nl=False)
    write_file(path, page.encode())
    return say(f"Wrote {path} ({size(path.stat().st_size)}). Open it in a browser.")
