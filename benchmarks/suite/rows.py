"""The rows of the suite's CSV file: one a finished run, appended as it finishes, read back to go on."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """What tells one row from another. Learning rates are compared as they are printed."""

    task: str
    backbone: str
    seed: int
    method: str
    recoded: str
    lr: str
    epochs: int
    size: str


@dataclass(frozen=True)
class Row:
    """One run, or one of its results stored in another encoding.

    Attributes:
        method: name of the contender.
        budget: what it was allowed to store, as it was told.
        encoding: that the layers are stored in.
        recoded: the same, if the run's result was stored in it once more; empty for the run itself.
        lr: learning rate, as printed.
        val, test: accuracy of the stored file, read back, 0..1; empty with a ``note`` if there is none.
        weights, norms, head: parameters stored.
        bytes: of the file.
        header: of these, the text that names the tensors.
        apart: the values without those of the head.
        share: ``apart`` as a share of the base's backbone in float32, as ``--budget 5%`` means it.
        seconds: from the first image opened to the file stored.
        open: names of the layers stored, in forward order, separated by spaces.
        note: why there is no accuracy.
    """

    task: str
    backbone: str
    seed: int
    method: str
    budget: str
    encoding: str
    lr: str
    epochs: int
    size: str
    recoded: str = ""
    val: float | None = None
    test: float | None = None
    weights: int = 0
    norms: int = 0
    head: int = 0
    bytes: int = 0
    header: int = 0
    apart: int = 0
    share: float = 0.0
    seconds: float = 0.0
    open: str = ""
    note: str = ""
    commit: str = ""
    machine: str = ""
    torch: str = ""
    timm: str = ""
    date: str = ""

    @property
    def key(self) -> Key:
        return Key(*(getattr(self, field.name) for field in fields(Key)))


COLUMNS = [field.name for field in fields(Row)]
WHOLE = {"seed", "epochs", "weights", "norms", "head", "bytes", "header", "apart"}
REAL = {"val", "test", "share", "seconds"}


def read(path: Path) -> list[Row]:
    """The rows of a file, the later of two with one key; none if there is no file. A torn last line is passed over."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        found = [_row(raw) for raw in csv.DictReader(file) if raw.get("date")]
    return list({row.key: row for row in found}.values())


def _row(raw: dict[str, str]) -> Row:
    values: dict[str, object] = {}
    for name in COLUMNS:
        text = raw.get(name) or ""
        if name in WHOLE:
            values[name] = int(text or 0)
        elif name in REAL:
            values[name] = float(text) if text else (None if name in ("val", "test") else 0.0)
        else:
            values[name] = text
    return Row(**values)  # type: ignore[arg-type]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end of a file, with a line of titles if it is new; on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists() or path.stat().st_size == 0
    torn = not new and not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="", encoding="utf-8") as file:
        if torn:
            file.write("\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})
        file.flush()
        os.fsync(file.fileno())
