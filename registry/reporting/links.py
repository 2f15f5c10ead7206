"""Where the run of a task can be looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from ..records import Run

UI_HOST, UI_PORT = "127.0.0.1", 5000  # where `taps-registry ui` serves the registry's own store unless told otherwise
UI = f"http://{UI_HOST}:{UI_PORT}"


@dataclass(frozen=True)
class TrackedAt:
    """Where a tracker keeps a run.

    Attributes:
        tracker: its name; empty for a run that nobody followed.
        run: the tracker's own id.
        address: of the run's page in MLflow; empty if there is none.
        folder: of the registry, where its files are; empty if there is none.
        inside: whether it is in MLflow's store inside the registry, whose pages are only there while
            ``taps-registry ui`` runs.
    """

    tracker: str = ""
    run: str = ""
    address: str = ""
    folder: str = ""
    inside: bool = False


def tracked_at(run: Run | None) -> TrackedAt:
    """For a run that the catalog may have forgotten."""
    if run is None or not run.tracker_run:
        return TrackedAt()
    uri = str(run.settings.get("tracking_uri") or "")
    inside = run.tracker == "mlflow" and not uri
    server = UI if inside else _server(uri) if run.tracker == "mlflow" else ""
    return TrackedAt(
        tracker=run.tracker,
        run=run.tracker_run,
        address=f"{server}/#/runs/{quote(run.tracker_run, safe='')}" if server else "",
        folder=f"tracking/{run.tracker_run}" if run.tracker == "csv" and not uri else "",
        inside=inside,
    )


def _server(uri: str) -> str:
    """The address of a web server without trailing slash, user and password; empty if ``uri`` names none."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not host:
        return ""
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
