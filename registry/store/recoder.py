"""An artifact in another encoding: in that of a name, or in the smallest whose accuracy is good enough (``auto``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...plugins.encodings import COMPRESSED
from ...plugins.manager import PluginManager
from ..folders import remove_files
from .artifact import recode_artifact
from .files import file_size


@dataclass(frozen=True)
class Draft:
    """An artifact in a folder of drafts, in this encoding; ``exact`` if it decodes to the same bits as its source."""

    path: Path
    encoding: str
    exact: bool

    @property
    def size(self) -> int:
        return file_size(self.path)


@dataclass(frozen=True)
class Recoder:
    """Writes drafts of one artifact, on this base, into a folder."""

    source: Path
    folder: Path
    base: Mapping[str, Tensor]
    plugins: PluginManager

    def in_encoding(self, name: str) -> Draft:
        """The artifact in the encoding of this name. Raises PluginError, IntegrityError or StorageError."""
        encoding = self.plugins.encoding(name)
        path = self.folder / f"{name}.safetensors"
        recode_artifact(path, self.source, self.base, encoding, self.plugins)
        return Draft(path, name, encoding.exact)

    def in_smallest_encoding(
        self, wanted: float, accuracy: Callable[[Path], float], note: Callable[[str], None]
    ) -> Draft:
        """Write the artifact in every encoding there is, and take the smallest file that comes near enough.

        An exact one always does, another one if ``accuracy`` says that it has what is ``wanted``, shares of 1, on
        validation images. ``note`` is told of each file that was measured.
        """
        drafts = [self._smaller(name) for name in self.plugins.encodings()]
        for draft in sorted(drafts, key=lambda draft: (draft.size, draft.encoding)):
            if draft.exact:
                return draft
            reached = accuracy(draft.path)
            near = reached >= wanted - 1e-9  # shares of a few images are no exact floats
            note(
                f"{draft.encoding}: {draft.size:,} bytes, validation accuracy {reached:.2%}: "
                f"{'accepted' if near else 'too low'}."
            )
            if near:
                return draft
        return self.in_encoding("fp32")

    def _smaller(self, name: str) -> Draft:
        """With or without compression, whichever file is smaller."""
        plain, compressed = (self.in_encoding(variant) for variant in (name, name + COMPRESSED))
        kept, dropped = (compressed, plain) if compressed.size < plain.size else (plain, compressed)
        remove_files([dropped.path])
        return kept
