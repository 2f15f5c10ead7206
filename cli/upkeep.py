"""The registry itself: init, upgrade, gc, verify, runs, plugins, ui."""

from __future__ import annotations

import subprocess
import sys

import click

from ..registry.reporting.links import UI_HOST, UI_PORT
from .output import print_json, print_table, say, size, time
from .session import Session, Verb, format_option
from .terminal import echo


@click.command(cls=Verb)
@click.pass_obj
def init(session: Session) -> None:
    """Create a registry: a .taps folder here, or the folder given by --home.

    \b
    Examples:
      taps-registry init
      taps-registry --home /srv/taps --database postgresql://taps@db/taps init
    """
    from ..registry import Registry

    where = session.where()
    with Registry.init(where["home"] or ".taps", database=where["database"]) as registry:
        say(f"The registry is at {registry.home}.")
    say("Next: taps-registry add-base NAME --model resnet50 --pretrained")


@click.command(cls=Verb)
@click.pass_obj
def upgrade(session: Session) -> None:
    """Migrate the catalog to this version's schema.

    Migrations run only through this command, and for a new catalog through init.

    \b
    Example:
      taps-registry upgrade
    """
    from ..registry import Registry

    before, after = Registry.upgrade(**session.where())
    say(f"The catalog is already at {after}." if before == after else f"Upgraded the catalog from {before} to {after}.")


@click.command(cls=Verb)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@format_option
@click.pass_obj
def gc(session: Session, dry_run: bool, form: str) -> None:
    """Remove files that nothing refers to, left by removed tasks, crashes and finished runs.

    \b
    Example:
      taps-registry gc --dry-run
    """
    with session.open() as registry:
        collected = registry.gc(dry_run=dry_run)
    if form == "json":
        return print_json(collected)
    for name in collected.removed:
        echo(name)
    return say(f"{'Would free' if dry_run else 'Freed'} {size(collected.bytes)}.")


@click.command(cls=Verb)
@click.option("--deep", is_flag=True, help="Read every byte, check every digest, compose every task.")
@format_option
@click.pass_obj
def verify(session: Session, deep: bool, form: str) -> int:
    """Check stored files against the catalog; exits with 9 and lists any problems.

    \b
    Example:
      taps-registry verify --deep
    """
    from ..registry.errors import IntegrityError

    with session.open() as registry:
        problems = registry.verify(deep=deep)
    if form == "json":
        print_json({"problems": problems})
    else:
        for problem in problems:
            echo(f"{problem.subject}: {problem.what}")
        say({0: "No problems.", 1: "1 problem."}.get(len(problems), f"{len(problems)} problems."))
    return IntegrityError.exit_code if problems else 0


@click.command(cls=Verb)
@click.argument("task", required=False)
@format_option
@click.pass_obj
def runs(session: Session, task: str | None, form: str) -> None:
    """List the runs, newest first: what was trained, how far it got, and why it stopped.

    \b
    Example:
      taps-registry runs cars
    """
    with session.open() as registry:
        listed = registry.runs(task)
    if form == "json":
        return print_json({"runs": listed})
    return print_table(
        ("run", "task", "base", "method", "state", "epoch>", "started", "last update", "tracker", "error"),
        (
            (
                run.id[:8],
                run.task,
                run.base,
                run.method,
                run.state,
                f"{run.epoch}/{run.epochs}",
                time(run.created),
                time(run.heartbeat),
                f"{run.tracker} {run.tracker_run[:8]}".strip(),
                run.error.partition("\n")[0][:60],
            )
            for run in listed
        ),
    )


@click.command(cls=Verb)
@format_option
@click.pass_obj
def plugins(session: Session, form: str) -> None:
    """List all plugins that were found, active or not. Works without a registry.

    \b
    Example:
      taps-registry plugins --format json
    """
    from ..plugins.manager import PluginManager

    infos = PluginManager(session.disabled_plugins()).plugins()
    if form == "json":
        return print_json({"plugins": infos})
    return print_table(
        ("plugin", "provides", "distribution", "version", "state"),
        (
            (info.name, what, info.distribution, info.version, info.state)
            for info in infos
            for what in info.provides or ("",)
        ),
    )


@click.command(cls=Verb)
@click.option("--host", default=UI_HOST, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=UI_PORT, show_default=True, help="Port to listen on.")
@click.pass_obj
def ui(session: Session, host: str, port: int) -> int:
    """Start MLflow's own UI with the registry's runs.

    \b
    Example:
      taps-registry ui --port 5001
    """
    from ..plugins.trackers.mlflow import settle, store_uri
    from ..registry.errors import NotFoundError

    with session.open() as registry:
        home = registry.home
    if not (home / "mlflow").exists():
        raise NotFoundError("This registry has no MLflow runs yet; add a task first.")
    settle(home)
    # One worker: MLflow's four take four times the memory, and the pages are as quick for one reader.
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri(home), "--workers", "1"]
    say(f"MLflow is starting at http://{host}:{port} ; Ctrl-C stops it.")
    try:
        return subprocess.call([*command, "--host", host, "--port", str(port)])  # noqa: S603  (our own arguments)
    except KeyboardInterrupt:
        return 0
