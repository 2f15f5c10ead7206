"""Reading beside processes that replace and remove: what was looked up may be gone by the time it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .errors import IntegrityError, StorageError

Seen = TypeVar("Seen")
Made = TypeVar("Made")


def with_fresh(look_up: Callable[[], Seen], use: Callable[[Seen], Made]) -> Made:
    """Use what the catalog says; if files of it are missing or damaged and it has changed meanwhile, what it says now.

    Another process may recode or remove a task, and ``gc`` take its file, between the two. Only what is missing while
    the catalog still refers to it is damage: an IntegrityError or StorageError of ``use`` is raised if ``look_up``
    gives an equal answer afterwards.
    """
    seen = look_up()
    while True:
        try:
            return use(seen)
        except (IntegrityError, StorageError):
            now = look_up()
            if now == seen:
                raise
            seen = now
