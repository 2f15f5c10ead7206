"""``--encoding auto``: the smallest artifact whose validation accuracy is good enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...plugins.encodings import COMPRESSED
from ..folders import remove_files
from ..models.bases import LoadedBase
from ..store.artifact import recode_artifact
from ..store.files import file_size


@dataclass(frozen=True)
class Draft:
    """An artifact in a folder of drafts, in this encoding; ``exact`` if it decodes to the same bits as its source."""

    path: Path
    encoding: str
    exact: bool

    @property
    def size(self) -> int:
        return file_size(self.path)


def recoded(source: Path, folder: Path, base: LoadedBase, name: str) -> Draft:
    """Write an artifact anew in the encoding of this name. Raises PluginError, IntegrityError or StorageError."""
    encoding = base.plugins.encoding(name)
    path = folder / f"{name}.safetensors"
    recode_artifact(path, source, base.tensors, encoding, base.plugins)
    return Draft(path, name, encoding.exact)


def choose(
    source: Path,
    folder: Path,
    base: LoadedBase,
    wanted: float,
    accuracy: Callable[[Path], float],
    note: Callable[[str], None],
) -> Draft:
    """Write an artifact in every encoding there is, and take the smallest file that comes near enough.

    Args:
        source: of an artifact.
        folder: for drafts.
        base: that it belongs to.
        wanted: least accuracy that is good enough, a share of 1; an exact file always is.
        accuracy: on validation images, a share of 1, of the artifact at a path.
        note: told of each file that was measured.
    """
    drafts = [_smaller(source, folder, base, name) for name in base.plugins.encodings()]
    for draft in sorted(drafts, key=lambda draft: (draft.size, draft.encoding)):
        if draft.exact:
            return draft
        found = accuracy(draft.path)
        near = found >= wanted - 1e-9  # shares of a few images are no exact floats
        note(
            f"{draft.encoding}: {draft.size:,} bytes, validation accuracy {found:.2%}: "
            f"{'accepted' if near else 'too low'}."
        )
        if near:
            return draft
    return recoded(source, folder, base, "fp32")


def _smaller(source: Path, folder: Path, base: LoadedBase, name: str) -> Draft:
    """With or without compression, whichever file is smaller."""
    plain, compressed = (recoded(source, folder, base, variant) for variant in (name, name + COMPRESSED))
    kept, dropped = (compressed, plain) if compressed.size < plain.size else (plain, compressed)
    remove_files([dropped.path])
    return kept
