"""Connections and ``os.fork``: a child process must neither use nor close those of its parent.

SQLite's locks and a server's protocol belong to the process that opened the connection. So idle connections are closed
before a fork, and the child begins with an empty pool.
"""

from __future__ import annotations

import os
from weakref import WeakSet

from sqlalchemy import Engine, QueuePool

_engines: WeakSet[Engine] = WeakSet()


def keep_apart(engine: Engine) -> None:
    """Give every forked process connections of its own to this engine's database."""
    _engines.add(engine)


def _close_idle() -> None:
    """The pools stay: what other threads have in use comes back to them."""
    for engine in list(_engines):
        if isinstance(engine.pool, QueuePool):  # others are for databases that are in memory only
            engine.pool.dispose()


def _forget() -> None:
    """What other threads of the parent had in use stays theirs: the child must not close it."""
    for engine in list(_engines):
        if isinstance(engine.pool, QueuePool):
            engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_close_idle, after_in_child=_forget)
