"""Passwords in URLs are neither stored nor shown, and folders' names may hold what means something in a URL."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from taps_registry import Registry
from taps_registry.plugins.methods.taps import Taps
from taps_registry.plugins.trackers.mlflow import store_uri
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.errors import Interrupted, SettingsError, StorageError, TrainingError
from taps_registry.registry.secrets import check_url, masked, without_secrets
from taps_registry.registry.training.progress import EpochResult, Progress
from taps_registry.registry.training.settings import TaskSettings

Add = Callable[..., object]
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and its libraries'


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:S3cret@db:5432/taps", "postgresql://me:***@db:5432/taps"),
        (
            "postgresql://me@db/taps?password=S3cret&sslmode=require",
            "postgresql://me@db/taps?password=***&sslmode=require",
        ),
        (
            "postgresql://db/taps?sslmode=require&SSLPASSWORD=S3cret",
            "postgresql://db/taps?sslmode=require&SSLPASSWORD=***",
        ),
        ("https://me:S3cret@host/mlflow", "https://me:***@host/mlflow"),
        ("https://S3cret@host/mlflow", "https://***@host/mlflow"),
        ("http://host/mlflow?access_token=S3cret#top", "http://host/mlflow?access_token=***#top"),
        ("HTTPS://S3cret@host/mlflow", "HTTPS://***@host/mlflow"),
        ("https://host/mlflow?sig=S3cret&auth=S3cret", "https://host/mlflow?sig=***&auth=***"),
        ("http://host/mlflow?p%61ssword=S3cret", "http://host/mlflow?p%61ssword=***"),
        ("http://host/mlflow#token=S3cret", "http://host/mlflow#token=***"),
        ("postgresql://db/taps?options=-cpassword%3DS3cret", "postgresql://db/taps?options=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DS3cret", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://me:a@S3cret@host", "http://me:***@host"),
        ("sqlite:////srv/me@home/a:b.db", "sqlite:////srv/me@home/a:b.db"),
        ("postgresql://me@db/taps", "postgresql://me@db/taps"),
        ("", ""),
    ],
)
def test_passwords_in_urls_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert masked(shown) == shown


def test_what_a_library_says_is_repeated_without_the_password() -> None:
    url = "postgresql://me:S3%20cret@db/taps?sslpassword=Other1"
    assert without_secrets("no S3 cret, no S3%20cret, no Other1 for me", url) == "no ***, no ***, no *** for me"
    url = "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3DS3cret%3B"
    assert without_secrets("login of me with S3cret failed", url) == "login of me with *** failed"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:S3/cret@host",
        "http://me:S3#cret@host",
        "https://me:S3?cret@host/x",
        "mysql+pymysql://me:1/S3cret@host/db",
        "http://me:1#S3cret@host",
    ],
)
def test_a_malformed_url_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="The URL of --tracking-uri is malformed") as caught:
        check_url(url, "--tracking-uri")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["S3cret", "postgresql://me:p@S3cret@host/db", "postgresql://me:x@host:S3cret/db"])
def test_a_malformed_database_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="not a database URL") as caught:
        Catalog(url)
    assert "S3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+foo://me:S3cret@127.0.0.1:1/taps", "There is no driver postgresql"),
        ("postgresql://me:S3cret@127.0.0.1:1/taps?foo=bar", "not available: invalid connection option"),
    ],
)
def test_a_driver_or_an_argument_that_does_not_exist_is_one_line(url: str, said: str) -> None:
    with pytest.raises((SettingsError, StorageError), match=said) as caught, Catalog(url).read():
        pass
    assert "S3cret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    catalog = Catalog("postgresql://me@127.0.0.1:1/taps?password=S3cret")
    with pytest.raises(StorageError) as caught, catalog.read():
        pass
    assert "password=***" in str(caught.value)
    assert "S3cret" not in str(caught.value)


def test_no_password_is_stored_with_a_run_and_a_resumed_one_asks_for_it(
    registry: Registry, add: Add, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/ml.db?timeout=5&password=S3cret"
    add("one", tracker="mlflow", tracking_uri=uri)
    (run,) = MlflowClient(uri).search_runs(
        [MlflowClient(uri).get_experiment_by_name("taps-registry/base").experiment_id]
    )
    assert run.data.params["tracking_uri"].endswith("password=***")
    for path in registry.home.rglob("*"):
        if path.is_file():
            assert b"S3cret" not in path.read_bytes(), path
    stored = TaskSettings(data="d", tracker="mlflow", tracking_uri=uri).as_json()
    assert stored["tracking_uri"].endswith("&password=***")
    resumed = TaskSettings.of(stored)
    with pytest.raises(SettingsError, match="whose password is not stored: name it again with --tracking-uri"):
        resumed.changed({}, Taps())
    assert resumed.changed({"tracking_uri": uri}, Taps()).tracking_uri == uri
    assert resumed.changed({"tracker": "none"}, Taps()).tracking_uri == ""


# Folders


@pytest.mark.parametrize("name", ["what?", "p%41b", "a#b", "a b", "ü;x=1&y", "%2F", "{home}"])
def test_a_registry_may_be_in_a_folder_of_any_name(tmp_path: Path, images: Path, name: str) -> None:
    home = tmp_path / name / ".taps"
    with Registry.init(home) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_task("one", "base", images, epochs=1, workers=0, method="head-only", augment="none")
    with Registry.open(home) as opened:
        assert [task.name for task in opened.tasks()] == ["one"]
    assert (home / "catalog.sqlite").is_file()
    assert (home / "mlflow" / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def pictures(home: Path) -> list[Path]:
    return sorted(path.relative_to(home) for path in home.rglob("*.png"))


def test_a_registry_that_was_moved_keeps_its_pictures_inside(registry: Registry, images: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {"epochs": 1, "workers": 0, "augment": "none"}
    registry.add_task("one", "base", images, **quick)
    before = pictures(registry.home)
    registry.close()
    home = registry.home.rename(tmp_path / "moved?")
    with Registry.open(home) as moved:
        moved.add_task("two", "base", images, **quick)
    assert not registry.home.exists()
    after = pictures(home)
    assert len(after) == 2
    assert set(before) < set(after)
    client = MlflowClient(store_uri(home))
    experiment = client.get_experiment_by_name("taps-registry/base")
    for run in client.search_runs([experiment.experiment_id]):
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["scores.png"]


def test_a_moved_registry_keeps_its_pictures_inside_with_a_database_outside_too(
    registry: Registry, images: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'outside.db'}"
    quick: dict[str, Any] = {"epochs": 1, "workers": 0, "augment": "none", "tracking_uri": uri}
    registry.add_task("one", "base", images, **quick)
    registry.close()
    home = registry.home.rename(tmp_path / "moved")
    with Registry.open(home) as moved:
        moved.add_task("two", "base", images, **quick)
    assert not registry.home.exists()
    assert len(pictures(home)) == 2
    client = MlflowClient(uri)
    for run in client.search_runs([client.get_experiment_by_name("taps-registry/base").experiment_id]):
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["scores.png"]


@pytest.mark.parametrize("outside", [False, True])
def test_a_run_resumed_in_a_moved_registry_keeps_its_picture_inside(
    registry: Registry, add: Add, tmp_path: Path, outside: bool
) -> None:
    class Stop(Progress):
        def epoch(self, result: EpochResult) -> None:
            raise KeyboardInterrupt

    uri = f"sqlite:///{tmp_path / 'outside.db'}" if outside else ""
    with pytest.raises(Interrupted):
        add("one", tracker="mlflow", tracking_uri=uri, epochs=2, progress=Stop())
    assert pictures(registry.home) == []
    registry.close()
    home = registry.home.rename(tmp_path / "moved")
    with Registry.open(home) as moved:
        moved.resume_task("one")
    assert not registry.home.exists()
    assert len(pictures(home)) == 1


def test_registries_that_share_a_database_leave_each_others_pictures_alone(
    registry: Registry, images: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'outside.db'}"
    quick: dict[str, Any] = {"epochs": 1, "workers": 0, "augment": "none", "tracking_uri": uri}
    registry.add_task("one", "base", images, **quick)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("taps-registry/base").experiment_id])
    with Registry.init(tmp_path / "other") as other:
        other.add_base("base", "test_resnet", random_init=True, input_size=32)
        other.add_task("two", "base", images, **quick)
    assert client.get_run(run.info.run_id).info.artifact_uri == run.info.artifact_uri
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["scores.png"]


def test_the_folder_of_a_database_outside_is_made(registry: Registry, add: Add, tmp_path: Path) -> None:
    add("one", tracker="mlflow", tracking_uri=f"sqlite:///{tmp_path}/new/folder/outside.db")
    assert (tmp_path / "new" / "folder" / "outside.db").is_file()


# Servers


@pytest.mark.parametrize("uri", ["postgresql+psycopg://me:S3cret@127.0.0.1:1/taps", "sqlite:///{folder}"])
def test_a_database_that_cannot_be_opened_is_told_within_seconds(
    registry: Registry, add: Add, tmp_path: Path, uri: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(TrainingError, match=r"the database does not answer: .*--tracker none") as caught:
        add("one", tracker="mlflow", tracking_uri=uri.format(folder=tmp_path))
    assert time.monotonic() - begun < 20
    assert "S3cret" not in str(caught.value)
    assert registry.tasks() == ()


def test_a_tracking_server_that_is_not_there_is_told_within_seconds_and_before_training(
    registry: Registry, add: Add
) -> None:
    begun = time.monotonic()
    with pytest.raises(TrainingError, match=r"no answer from http://127\.0\.0\.1:9: .*--tracker none"):
        add("one", tracker="mlflow", tracking_uri="http://127.0.0.1:9")
    assert time.monotonic() - begun < 20
    assert registry.tasks() == ()


@pytest.mark.parametrize(
    ("scheme", "said"), [("http", "no answer from"), ("postgresql+psycopg", "the database does not answer")]
)
def test_a_server_that_accepts_and_never_answers_is_not_waited_for(
    registry: Registry, add: Add, scheme: str, said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"{scheme}://me:S3cret@127.0.0.1:{server.getsockname()[1]}/mlflow"
        begun = time.monotonic()
        with pytest.raises(TrainingError, match=said) as caught:
            add("one", tracker="mlflow", tracking_uri=uri)
    assert time.monotonic() - begun < 30
    assert "S3cret" not in str(caught.value)


def test_init_stores_no_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Registry.init(tmp_path / "h", database="postgresql://me@127.0.0.1:1/taps?password=S3cret")
    assert "S3cret" not in (tmp_path / "h" / "registry.json").read_text()
    assert "password=***" in json.loads((tmp_path / "h" / "registry.json").read_text())["database"]
