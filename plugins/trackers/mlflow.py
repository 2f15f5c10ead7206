"""MLflow: an experiment a base, a run a task, in a SQLite store inside the registry or on a server.

The only file that imports mlflow. It speaks through a client of its own and leaves MLflow's global state alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..spec import Registrar, hookimpl
from . import RunInfo, TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def store_uri(home: Path) -> str:
    """The URI of the store inside a registry; its folder must exist before it is opened."""
    return f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"


def artifacts_uri(home: Path) -> str:
    """Where the store inside a registry keeps its files."""
    return (home / "mlflow" / "artifacts").resolve().as_uri()


class MlflowRun(TrackedRun):
    """One MLflow run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def parameters(self, values: Mapping[str, object]) -> None:
        """Parameters cannot change in MLflow; a value that a resumed run changed is kept as a tag."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.id).data.params
        texts = {name: str(value) for name, value in values.items()}
        changed = {name: text for name, text in texts.items() if known.get(name, text) != text}
        fresh = {name: text for name, text in texts.items() if name not in known}
        self.client.log_batch(
            self.id,
            params=[Param(name, text) for name, text in fresh.items()],
            tags=[RunTag(f"resumed.{name}", text) for name, text in changed.items()],
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def picture(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def end(self, state: str) -> None:
        self.client.set_terminated(self.id, STATES[state])


class MlflowTracker(Tracker):
    """The default."""

    name = "mlflow"
    summary = "MLflow: a store inside the registry, or the server of --tracking-uri"

    def follow(self, run: RunInfo) -> TrackedRun:
        from mlflow.tracking import MlflowClient

        (run.home / "mlflow").mkdir(exist_ok=True)
        client = MlflowClient(tracking_uri=run.uri or store_uri(run.home))
        if run.resumed:
            client.update_run(run.resumed, status="RUNNING")
            return MlflowRun(client, run.resumed)
        started = client.create_run(
            self._experiment(client, run),
            run_name=run.task,
            tags={"taps.run": run.run, "taps.base": run.base, "taps.task": run.task},
        )
        return MlflowRun(client, started.info.run_id)

    @staticmethod
    def _experiment(client: MlflowClient, run: RunInfo) -> str:
        """The id of the base's experiment; another process may be making it at the same moment."""
        from mlflow.exceptions import MlflowException

        name = f"taps-registry/{run.base}"
        known = client.get_experiment_by_name(name)
        if known is None:
            try:
                served = run.uri.startswith(("http://", "https://", "databricks"))  # a server has a place of its own
                return str(client.create_experiment(name, None if served else artifacts_uri(run.home)))
            except MlflowException:
                known = client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)


@hookimpl
def register_trackers(registrar: Registrar) -> None:
    registrar.tracker(MlflowTracker())
