"""The report: report."""

from __future__ import annotations

from pathlib import Path

import click

from .output import say, size
from .session import Session, Verb


@click.command(cls=Verb)
@click.option("--base", metavar="B", help="One base only.")
@click.option(
    "-o", "--output", default="report.html", show_default=True, metavar="FILE", help="Where to; - for standard output."
)
@click.option("--force", is_flag=True, help="Also replace a file that is not an earlier report.")
@click.pass_obj
def report(session: Session, base: str | None, output: str, force: bool) -> None:
    """Write a page of HTML: which layers each task stores, what it costs, how good it is.

    The file needs neither network nor server. An earlier report is replaced, any other file only with --force.

    \b
    Examples:
      taps-registry report
      taps-registry report --base r50 -o r50.html
    """
    from ..registry.errors import SettingsError
    from ..registry.reporting.page import is_report
    from ..registry.store.files import write_file

    path = None if output == "-" else Path(output)
    if path is not None and path.exists() and not force and not is_report(path):
        raise SettingsError(f"{path} is no earlier report. Choose another -o, or replace it with --force.")
    with session.open() as registry:
        page = registry.report(base=base)
    if path is None:
        return click.echo(page, nl=False)
    write_file(path, page.encode())
    return say(f"Wrote {path} ({size(path.stat().st_size)}). Open it in a browser.")
