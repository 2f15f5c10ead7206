"""``taps-registry demo``: the whole main job on small data, through the same functions as the commands it prints."""

from __future__ import annotations

import click

from ..session import Session, Verb


@click.command(cls=Verb)
@click.option(
    "--dir",
    "folder",
    default="taps-demo",
    show_default=True,
    metavar="DIR",
    help="Folder for the images and the registry.",
)
@click.pass_obj
def demo(session: Session, folder: str) -> None:
    """Train a small base, add three tasks, see what they cost. Takes a few minutes; can be stopped and run again.

    \b
    Example:
      taps-registry demo --dir /tmp/taps-demo
    """
    from .story import Story

    Story(folder, session.disabled_plugins()).tell()
