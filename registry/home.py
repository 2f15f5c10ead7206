"""The folder a registry lives in: where its parts are, and whose they are."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import URL

from .errors import HomeError, SettingsError
from .locks import locked
from .store.files import disk_errors, write_file

FOLDER = ".taps"
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Home:
    """A registry's folder.

    ::

        registry.json      who this is: an id that the catalog repeats, and where the catalog is
        catalog.sqlite     the catalog, unless it is elsewhere
        objects/           files named by their SHA-256
        runs/              a folder a run: checkpoints while it trains, its history afterwards
        mlflow/            MLflow's store, unless it is on a server
    """

    root: Path

    @property
    def identity(self) -> Path:
        return self.root / "registry.json"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def catalog(self) -> Path:
        """The SQLite catalog inside the folder."""
        return self.root / "catalog.sqlite"

    @property
    def database(self) -> URL:
        """URL of the catalog inside the folder, whatever characters are in its name."""
        return URL.create("sqlite", database=str(self.catalog))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while files are put in place and while they are collected, never during training.

        Raises:
            BusyError: if another process holds it for ten minutes.
            StorageError: if the folder is gone, or the disk refuses.
        """
        path = self.root / "lock"
        with locked(path, 600, f"Another process has held {path} for ten minutes. Try again."):
            yield


@dataclass(frozen=True)
class Identity:
    """What ``registry.json`` says; ``database`` is empty for the catalog inside the folder, else without password."""

    id: str
    database: str = ""
    format: int = FORMAT


def find(start: Path) -> Home:
    """The nearest ``.taps`` at or above ``start``. Raises HomeError if there is none."""
    start = start.absolute()
    with disk_errors(f"look for {FOLDER} in {start} and above it"):
        for folder in (start, *start.parents):
            if (folder / FOLDER / "registry.json").exists():
                return Home(folder / FOLDER)
    raise HomeError(
        f"No registry here: no {FOLDER} folder in {start} or above it. "
        "Type `taps-registry init` to make one, or name one with --home."
    )


def existing(root: Path) -> Home:
    """The registry at ``root``. Raises HomeError if there is none."""
    home = Home(root.absolute())
    with disk_errors(f"read {home.identity}"):
        present = home.identity.exists()
    if not present:
        raise HomeError(f"There is no registry at {home.root}. Type: taps-registry --home {root} init")
    return home


def identity(home: Home) -> Identity:
    """Who the registry is. Raises HomeError if the file that says so is damaged or of a newer version."""
    try:
        with disk_errors(f"read {home.identity}"):
            text = home.identity.read_text("utf-8")
        stored = Identity(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise HomeError(f"{home.identity} is damaged: {error}. Restore it from a backup.") from error
    if stored.format != FORMAT:
        raise HomeError(
            f"{home.identity} has format {stored.format}, but this version supports {FORMAT}. Upgrade taps-registry."
        )
    return stored


def create(root: Path, database: str) -> tuple[Home, Identity]:
    """Make the folder, or finish one that was begun; its id stays what it was."""
    home = Home(root.absolute())
    with disk_errors(f"make {home.root}"):
        home.objects.mkdir(parents=True, exist_ok=True)
        home.runs.mkdir(exist_ok=True)
    with home.lock():
        if home.identity.exists():
            return home, identity(home)
        new_identity = Identity(uuid.uuid4().hex, database)
        write_file(home.identity, json.dumps(asdict(new_identity), indent=2).encode())
    return home, new_identity


def require_outside(path: Path) -> Path:
    """``path`` itself, if a file may be written there for a user.

    Raises SettingsError if it is inside a registry, whose files only the registry may write.
    """
    with disk_errors(f"write {path}"):
        real = Path(os.path.realpath(path))  # resolve() of a link to itself raises what is no OSError
        inside = next((folder for folder in real.parents if (folder / "registry.json").is_file()), None)
    if inside and (inside / "objects").is_dir():
        raise SettingsError(f"{path} is inside the registry {inside}. Choose a file outside of it.")
    return path


def check_name(name: str, what: str) -> str:
    """``name`` if it can name a base or task: it appears in paths, URLs and tables. Raises SettingsError otherwise."""
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} is not a valid {what} name: use letters, digits, '.', '-' and '_', starting with a letter or "
            "digit."
        )
    return name
