"""MLflow: an experiment a base, a run a task, in a SQLite store inside the registry or on a server.

The only file that imports mlflow. It speaks through a client of its own and leaves MLflow's global state alone, but for
how long MLflow waits for a server.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from sqlalchemy import URL, NullPool, create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from ..spec import Registrar, hookimpl
from . import RunInfo, TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREFIX = "taps-registry/"
WEB = ("http://", "https://")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
PATIENCE = 5  # seconds for a server to answer before training
PATIENCE_OF = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}  # what drivers call it
HTTP = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": 10,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": 2,
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": 1,
}
OUR_EXPERIMENTS = "SELECT experiment_id, artifact_location FROM experiments WHERE name LIKE :ours"
OUR_RUNS = "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = :number"
MOVE_EXPERIMENT = "UPDATE experiments SET artifact_location = :here WHERE experiment_id = :number"
MOVE_RUN = "UPDATE runs SET artifact_uri = :here WHERE run_uuid = :run"
STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def store_uri(home: Path) -> str:
    """The URI of the store inside a registry; its folder must exist before it is opened."""
    # With the driver's name: for plain sqlite URIs MLflow makes a folder itself, and calls it what is escaped there.
    return URL.create("sqlite+pysqlite", database=str(home / "mlflow" / "mlflow.db")).render_as_string()


def settle(home: Path, uri: str = "", resumed: str | None = None) -> None:
    """Let a store know where the registry is now: MLflow keeps whole paths, and a registry may be moved.

    Other registries may share a database outside, ``uri``. There, only paths to folders that are gone are replaced, and
    those of runs only if the run is this registry's: its files are here, or it is the one that is ``resumed``.
    """
    url = make_url(uri or store_uri(home))
    if _has_no_folder(url) or (not uri and not (home / "mlflow" / "mlflow.db").exists()):
        return
    here = artifacts_uri(home)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        if not inspect(connection).has_table("experiments"):
            return
        for number, there in connection.execute(text(OUR_EXPERIMENTS), {"ours": f"{PREFIX}%"}).all():
            for run, path in connection.execute(text(OUR_RUNS), {"number": number}).all():
                ours = run == resumed or (home / "mlflow" / "artifacts" / run).is_dir()
                if path != f"{here}/{run}/artifacts" and (not uri or (ours and _is_gone(path))):
                    connection.execute(text(MOVE_RUN), {"run": run, "here": f"{here}/{run}/artifacts"})
            if there != here and (not uri or _is_gone(there, above=2)):  # the registry that began it
                connection.execute(text(MOVE_EXPERIMENT), {"number": number, "here": here})


def _is_gone(uri: str, above: int = 0) -> bool:
    """Whether a URI names a folder of this machine that is not there, or that many folders above it."""
    if not uri.startswith("file:"):
        return False
    path = Path(url2pathname(urlsplit(uri).path))
    return not (path, *path.parents)[above].exists()


def _has_no_folder(url: URL) -> bool:
    """Whether a SQLite file's folder is not there yet: MLflow makes it."""
    return url.get_backend_name() == "sqlite" and not Path(url.database or "").parent.is_dir()


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

        if run.uri:
            _require_answer(run.uri)
        else:
            (run.home / "mlflow").mkdir(exist_ok=True)
        if not run.uri or run.uri.startswith(DATABASES):
            settle(run.home, run.uri, run.resumed)
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

        name = f"{PREFIX}{run.base}"
        known = client.get_experiment_by_name(name)
        if known is None:
            try:
                served = run.uri.startswith((*WEB, "databricks"))  # a server has a place of its own
                return str(client.create_experiment(name, None if served else artifacts_uri(run.home)))
            except MlflowException:
                known = client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)


def _require_answer(uri: str) -> None:
    """Find out within seconds whether a server is there, and wait for no request of a run for minutes.

    What the environment says of MLflow's patience counts; its own defaults are minutes.

    Raises:
        OSError: if nobody answers.
    """
    from mlflow import environment_variables

    for name, value in HTTP.items():
        variable = getattr(environment_variables, name)
        if not variable.is_set():
            variable.set(value)
    if uri.startswith(DATABASES):
        _require_database(uri)
    elif uri.startswith(WEB):
        _require_server(uri)


def _require_database(uri: str) -> None:
    """Connect once: MLflow itself would try for minutes, even with a wrong password."""
    url = make_url(uri)
    if _has_no_folder(url):
        return
    backend = url.get_backend_name()
    patience = {PATIENCE_OF[backend]: PATIENCE} if backend in PATIENCE_OF else {}
    arguments = {name: value for name, value in patience.items() if name not in url.query}
    try:
        create_engine(url, poolclass=NullPool, connect_args=arguments).connect().close()
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ConnectionError(f"the database does not answer: {reason}") from error


def _require_server(uri: str) -> None:
    parts = urlsplit(uri)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    place = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"
    try:
        with urlopen(f"{place}{parts.path.rstrip('/')}/health", timeout=PATIENCE):  # noqa: S310  (http or https)
            pass
    except HTTPError:
        pass  # somebody is there, who may want to know more than we say here
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # MLflow has settings of its own for certificates
            raise ConnectionError(f"no answer from {place}: {reason}") from error


@hookimpl
def register_trackers(registrar: Registrar) -> None:
    registrar.tracker(MlflowTracker())
