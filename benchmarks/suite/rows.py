"""The rows of the suite's CSV file: one a finished run, appended as it finishes, read back to go on."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from taps_registry.registry.store.files import in_place


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
        rank: of LoRA's factors, as it was chosen; None without a choice, and where nobody wrote it down.
        val, test: accuracy of the stored file, read back, 0..1; empty with a ``note`` if there is none.
        weights, norms, head: parameters stored.
        bytes: of the file.
        header: of these, the text that names the tensors.
        apart: the values without those of the head.
        share: ``apart`` as a share of the base's backbone in float32, as ``--budget 5%`` means it.
        seconds: from the first image opened to the file stored.
        open: names of the layers stored, in forward order, separated by spaces.
        note: why there is no accuracy.
        device: ``cpu``, or the model of the CUDA device; empty where nobody wrote it down.
        date: the last column, so that a row without it is torn.
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
    rank: int | None = None
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
    device: str = ""
    torch: str = ""
    timm: str = ""
    date: str = ""

    @property
    def key(self) -> Key:
        return Key(*(getattr(self, field.name) for field in fields(Key)))


COLUMNS = [field.name for field in fields(Row)]
WHOLE = {"seed", "epochs", "rank", "weights", "norms", "head", "bytes", "header", "apart"}
REAL = {"val", "test", "share", "seconds"}
OPTIONAL = {"rank", "val", "test"}


def read(path: Path) -> list[Row]:
    """The rows of a file, the later of two with one key; none if there is no file. A torn last line is passed over.

    Columns that the file does not have yet are empty.
    """
    return list({row.key: row for row in map(_row, _complete(path)[1])}.values())


def _complete(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A file's titles and the lines that are not torn, as text; nothing if there is no file."""
    if not path.exists():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        return list(lines.fieldnames or ()), [raw for raw in lines if raw.get("date")]


def _row(raw: dict[str, str]) -> Row:
    values: dict[str, object] = {}
    for name in COLUMNS:
        text = raw.get(name) or ""
        if not text and name in OPTIONAL:
            values[name] = None
        elif name in WHOLE:
            values[name] = int(text or 0)
        elif name in REAL:
            values[name] = float(text or 0)
        else:
            values[name] = text
    return Row(**values)  # type: ignore[arg-type]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end of a file, which is made if need be; on the disk when this returns.

    A file of earlier code gets the columns that it lacks, empty in its rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    titles = _with_all_columns(path)
    torn = not path.read_bytes().endswith(b"\n")
    with path.open("a", newline="", encoding="utf-8") as file:
        if torn:
            file.write("\n")
        writer = csv.DictWriter(file, titles, lineterminator="\n")  # in the file's own order
        for row in rows:
            writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()})
        file.flush()
        os.fsync(file.fileno())


def _with_all_columns(path: Path) -> list[str]:
    """The titles of a file that has every column; one that lacks some is replaced by one with the same rows."""
    titles, lines = _complete(path)
    if set(COLUMNS) <= set(titles):
        return titles
    titles = [*(title for title in titles if title not in COLUMNS), *COLUMNS]
    with in_place(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, titles, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return titles
