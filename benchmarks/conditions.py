"""What a measurement was made on and with, and the file it is kept in."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def conditions(packages: Iterable[str]) -> dict[str, Any]:
    """Machine, date, command, and the versions of ``packages`` and of Python."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load_at_the_end": [round(value, 2) for value in load],  # others at work make every figure worse
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _module() -> str:
    """The module that was run, as ``python -m`` names it."""
    return str(getattr(sys.modules["__main__"].__spec__, "name", Path(sys.argv[0]).name))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path, found: dict[str, Any]) -> None:
    """Keep measurements as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
