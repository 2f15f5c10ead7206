"""``taps-registry``: the group of all commands, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from types import FrameType
from typing import Any

import click

from .session import Session, common_options
from .terminal import echo, show_what_can_be_shown

# Which file has which commands: a command's file is imported when the command is typed.
COMMANDS = {
    "init": "upkeep",
    "upgrade": "upkeep",
    "add-base": "bases",
    "bases": "bases",
    "remove-base": "bases",
    "add-task": "tasks",
    "tasks": "tasks",
    "show": "tasks",
    "cost": "costs",
    "budget": "costs",
    "report": "report",
    "predict": "use",
    "evaluate": "use",
    "export": "use",
    "recode": "tasks",
    "remove": "tasks",
    "gc": "upkeep",
    "verify": "upkeep",
    "runs": "upkeep",
    "plugins": "upkeep",
    "ui": "upkeep",
    "demo": "demo",
}


class Program(click.Group):
    """Finds commands by name without importing all of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.{COMMANDS[cmd_name]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        close = get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = f" Did you mean {close[0]!r}?" if close else " `taps-registry --help` lists the commands."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="taps-registry", message="%(package)s %(version)s", help="Print the version.")
def main() -> None:
    """One pre-trained vision backbone, any number of tasks, each stored as the layers it changed.

    \b
    A first session:
      taps-registry init
      taps-registry add-base r50 --model resnet50 --pretrained
      taps-registry add-task cars --base r50 --data images/cars
      taps-registry cost
    """


main.params.extend(common_options())


def run(arguments: list[str] | None = None) -> None:
    """The console script: runs a command and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    show_what_can_be_shown()
    sys.exit(_run(arguments, Session()))


def _run(arguments: list[str] | None, session: Session) -> int:
    from ..registry.errors import Interrupted, StorageError, TapsError

    _quiet_libraries("--verbose" in (arguments if arguments is not None else sys.argv))
    try:
        code: Any = main.main(arguments, "taps-registry", standalone_mode=False, obj=session)
    except click.Abort:
        return 130
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue().removesuffix("\n"), err=True)
        return error.exit_code
    except TapsError as error:
        if session.verbose:
            echo(traceback.format_exc(), err=True)
        echo(str(error) if isinstance(error, Interrupted) else f"Error: {error}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        return 130
    except (SystemExit, BrokenPipeError):
        # A pipe whose reader has gone, as `| head` does. Click and rich answer it by exiting; nothing of ours exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python has still to flush
        return 0
    except OSError as error:  # what nobody nearer to it has put into words: disks and networks may fail anywhere
        if session.verbose:
            echo(traceback.format_exc(), err=True)
        echo(f"Error: {error}", err=True)
        return StorageError.exit_code
    return code if isinstance(code, int) else 0


def _quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' logs off the terminal unless they were asked for."""
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, stream=sys.stderr)
    if not verbose:
        for name in ("mlflow", "alembic", "timm", "accelerate", "torch", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it sets its own level when it is imported
        warnings.simplefilter("ignore")
    ours = logging.getLogger("taps_registry")
    ours.setLevel(logging.WARNING)
    ours.addHandler(_Notes())
    ours.propagate = False


class _Notes(logging.Handler):
    """What the package warns of, as a line for people."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(f"Note: {record.getMessage()}", err=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: resumable."""
    raise KeyboardInterrupt
