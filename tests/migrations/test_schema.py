"""The schema on SQLite and on a PostgreSQL that is started here: its migrations, its neighbours, its refusals."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from threading import Timer

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from taps_registry import Registry
from taps_registry.registry.catalog import schema
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.catalog.tables import Row
from taps_registry.registry.errors import HomeError, SchemaError, SettingsError, StorageError, TapsError

OURS = set(Row.metadata.tables)
KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=KINDS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Says the URL of an empty database, once for each kind of database."""
    if request.param == "postgresql":
        made: Callable[[], str] = request.getfixturevalue("new_postgres")
        return made
    numbers = count()
    return lambda: f"sqlite:///{tmp_path / f'catalog{next(numbers)}.sqlite'}"


@pytest.fixture
def catalog(new_url: Callable[[], str]) -> Iterator[Catalog]:
    """An empty database."""
    made = Catalog(new_url())
    yield made
    made.close()


def tables(catalog: Catalog) -> set[str]:
    with catalog.read() as session:
        return set(inspect(session.connection()).get_table_names())


def stamp(catalog: Catalog, revision: str | None) -> None:
    """Give the catalog another revision, or none."""
    with catalog.write() as session:
        session.execute(text(f"DELETE FROM {schema.VERSION_TABLE}"))
        if revision is not None:
            session.execute(text(f"INSERT INTO {schema.VERSION_TABLE} VALUES (:revision)"), {"revision": revision})


def check_models(catalog: Catalog) -> None:
    """``alembic check``: raises if the tables differ from the models."""
    with catalog.connect_to_write() as connection:
        command.check(schema.alembic_config(connection))


def downgrade(catalog: Catalog) -> None:
    with catalog.connect_to_write() as connection:
        command.downgrade(schema.alembic_config(connection), "base")


# Migrations


def test_the_schema_goes_up_matches_the_models_goes_down_and_up_again(catalog: Catalog) -> None:
    assert schema.upgrade(catalog) == (None, schema.REVISION)
    check_models(catalog)
    assert tables(catalog) == OURS | {schema.VERSION_TABLE}

    downgrade(catalog)
    assert tables(catalog) == {schema.VERSION_TABLE}
    assert schema.current(catalog) is None

    assert schema.upgrade(catalog) == (None, schema.REVISION)
    check_models(catalog)
    assert schema.upgrade(catalog) == (schema.REVISION, schema.REVISION)


def test_alembic_check_notices_a_column_that_the_models_do_not_have(catalog: Catalog) -> None:
    schema.upgrade(catalog)
    with catalog.write() as session:
        session.execute(text("ALTER TABLE taps_runs ADD COLUMN surplus INTEGER"))
    with pytest.raises(Exception, match="surplus"):
        check_models(catalog)


def test_the_revision_in_the_code_is_the_head_of_the_migrations(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    with catalog.connect_to_write() as connection:
        scripts = ScriptDirectory.from_config(schema.alembic_config(connection))
    catalog.close()
    assert scripts.get_heads() == [schema.REVISION]


def test_an_upgrade_that_fails_leaves_nothing_behind(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.execute(text("CREATE TABLE taps_tasks (id INTEGER)"))  # in the way, after five tables of ours
    with pytest.raises(Exception, match="taps_tasks"):
        schema.upgrade(catalog)
    assert tables(catalog) == {"taps_tasks"}


def test_every_index_and_constraint_of_the_models_is_in_the_database(catalog: Catalog) -> None:
    schema.upgrade(catalog)
    with catalog.read() as session:
        inspector = inspect(session.connection())
        for name, table in Row.metadata.tables.items():
            referred = {
                (*key["constrained_columns"], key["referred_table"], key["options"].get("ondelete"))
                for key in inspector.get_foreign_keys(name)
            }
            wanted = {(key.parent.name, key.column.table.name, key.ondelete) for key in table.foreign_keys}
            assert referred == wanted, name
            made = {index["name"] for index in inspector.get_indexes(name) if not index["unique"]}
            assert made == {str(index.name) for index in table.indexes}, name


# MLflow beside it


def touch_mlflow(url: str) -> int:
    """Let MLflow make or open its own tables; says how many experiments it has."""
    from mlflow.tracking import MlflowClient

    return len(MlflowClient(tracking_uri=url).search_experiments())


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@pytest.mark.parametrize("first", ["ours", "mlflow"])
def test_mlflow_lives_in_the_same_database_whoever_comes_first(tmp_path: Path, first: str) -> None:
    url = f"sqlite:///{tmp_path / 'both.sqlite'}"
    catalog = Catalog(url)
    if first == "ours":
        schema.upgrade(catalog)
        touch_mlflow(url)
    else:
        touch_mlflow(url)
        schema.upgrade(catalog)
    found = tables(catalog)
    assert found >= OURS | {schema.VERSION_TABLE}
    assert found >= {"runs", "experiments", "alembic_version"}
    check_models(catalog)
    assert touch_mlflow(url) == 1

    downgrade(catalog)
    assert not tables(catalog) & OURS
    assert touch_mlflow(url) == 1
    catalog.close()


# Many processes at once

INIT = """
import sys, time
from pathlib import Path
from taps_registry.registry.registry import Registry
from taps_registry.registry.catalog import schema
import alembic.command
home, database, start = sys.argv[1:]
print("ready", flush=True)
while not Path(start).exists():
    time.sleep(0.002)
with Registry.init(home, database=database) as registry:
    assert registry.tasks() == ()
"""


def test_six_processes_can_make_the_same_registry_at_once(tmp_path: Path, new_url: Callable[[], str]) -> None:
    url = new_url()
    database = url if url.startswith("postgresql") else ""
    home, start = tmp_path / "home", tmp_path / "start"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INIT, str(home), database, str(start)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start.touch()
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * 6, "\n".join(errors for errors, _ in ended)

    with Registry.open(home, database=database) as registry, registry._context.catalog.read() as session:
        assert session.scalar(text("SELECT count(*) FROM taps_registry")) == 1
        assert session.scalar(text(f"SELECT count(*) FROM {schema.VERSION_TABLE}")) == 1


def test_a_new_database_that_another_is_writing_to_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself does not, however long its busy timeout, when the journal is to change."""
    path = tmp_path / "catalog.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = Timer(0.3, lambda: other.execute("COMMIT"))
        done.start()
        catalog = Catalog(f"sqlite:///{path}")
        schema.upgrade(catalog)
        done.join()
    assert tables(catalog) >= OURS
    catalog.close()


# Refusals


@pytest.fixture
def home(tmp_path: Path, new_url: Callable[[], str]) -> tuple[Path, str]:
    """Folder and database of a new registry."""
    folder, url = tmp_path / "registry", new_url()
    Registry.init(folder, database=url).close()
    return folder, url


UNKNOWN = "has revision {}, but this version knows only r0001. Type: pip install --upgrade taps-registry"


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("r0000", UNKNOWN.format("r0000")),
        ("r9999", UNKNOWN.format("r9999")),
        (None, "contains no catalog yet. Type: taps-registry init"),
    ],
)
def test_a_catalog_of_another_revision_is_refused_and_left_alone(
    home: tuple[Path, str], revision: str | None, said: str
) -> None:
    folder, url = home
    catalog = Catalog(url)
    stamp(catalog, revision)
    with pytest.raises(SchemaError, match=said):
        Registry.open(folder, database=url)
    assert schema.current(catalog) == revision
    catalog.close()


@pytest.mark.parametrize("revision", ["r0000", "r9999"])
def test_upgrade_refuses_an_unknown_catalog_naming_both_revisions(home: tuple[Path, str], revision: str) -> None:
    folder, url = home
    catalog = Catalog(url)
    stamp(catalog, revision)
    for upgrading in (Registry.upgrade, Registry.init):
        with pytest.raises(SchemaError, match=UNKNOWN.format(revision)):
            upgrading(folder, database=url)
    assert schema.current(catalog) == revision
    catalog.close()


def test_opening_a_registry_never_migrates(home: tuple[Path, str]) -> None:
    folder, url = home
    catalog = Catalog(url)
    downgrade(catalog)
    with pytest.raises(SchemaError, match="Type: taps-registry init"):
        Registry.open(folder, database=url)
    assert tables(catalog) == {schema.VERSION_TABLE}

    with pytest.raises(SchemaError, match="Type: taps-registry init"):
        Registry.upgrade(folder, database=url)
    Registry.init(folder, database=url).close()
    Registry.open(folder, database=url).close()
    assert tables(catalog) == OURS | {schema.VERSION_TABLE}
    catalog.close()


def test_a_catalog_of_another_registry_is_refused(tmp_path: Path, new_url: Callable[[], str]) -> None:
    one, other = new_url(), new_url()
    Registry.init(tmp_path / "one", database=one).close()
    Registry.init(tmp_path / "other", database=other).close()
    for opening in (Registry.open, Registry.init, Registry.upgrade):
        with pytest.raises(
            HomeError,
            match=r"belongs to a different registry than .*one.*--home and --database|cannot have a second one",
        ):
            opening(tmp_path / "one", database=other)
    Registry.open(tmp_path / "one", database=one).close()


def test_a_registry_does_not_claim_a_second_catalog(tmp_path: Path, new_url: Callable[[], str]) -> None:
    """With an empty catalog that carries its id, ``gc`` would take every object for garbage."""
    Registry.init(tmp_path / "home").close()
    empty = new_url()
    for claiming in (Registry.init, Registry.upgrade):
        with pytest.raises((HomeError, SchemaError)):
            claiming(tmp_path / "home", database=empty)


def test_a_registry_whose_catalog_is_elsewhere_says_where(home: tuple[Path, str]) -> None:
    folder, _ = home
    with pytest.raises(SchemaError, match=r"is in (sqlite|postgresql).*Name it with --database or \$TAPS_DATABASE_URL"):
        Registry.open(folder)


@pytest.mark.parametrize(
    "url", ["postgresql://nobody@127.0.0.1:1/nothing", "sqlite:////nonexistent/folder/catalog.sqlite"]
)
@pytest.mark.parametrize("verb", ["init", "open", "upgrade"])
def test_a_database_that_does_not_answer_is_a_storage_error(tmp_path: Path, verb: str, url: str) -> None:
    if verb != "init":
        Registry.init(tmp_path / "home").close()
    with pytest.raises(StorageError, match="is not available"):
        getattr(Registry, verb)(tmp_path / "home", database=url)


def test_a_catalog_that_is_no_database_is_a_storage_error(tmp_path: Path) -> None:
    Registry.init(tmp_path / "home").close()
    for name in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (tmp_path / "home" / name).unlink(missing_ok=True)
    (tmp_path / "home" / "catalog.sqlite").write_bytes(b"not a database at all, not at all. " * 100)
    with pytest.raises(StorageError):
        Registry.open(tmp_path / "home")


def test_opening_a_registry_whose_catalog_is_gone_makes_no_empty_one(tmp_path: Path) -> None:
    Registry.init(tmp_path / "home").close()
    for path in (tmp_path / "home").glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(TapsError):
        Registry.open(tmp_path / "home")
    assert not (tmp_path / "home" / "catalog.sqlite").exists()


@pytest.mark.parametrize(
    "written", ["", "{}", "[]", "no json", '{"id": "a", "database": "", "format": 1, "colour": 2}']
)
def test_a_damaged_registry_json_is_an_error_with_a_text(tmp_path: Path, written: str) -> None:
    Registry.init(tmp_path / "home").close()
    (tmp_path / "home" / "registry.json").write_text(written)
    with pytest.raises(TapsError, match=r"registry\.json"):
        Registry.open(tmp_path / "home")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "is not a database URL"),
        ("mysql://root@host/catalog", "SQLite or PostgreSQL, not in mysql"),
    ],
)
def test_a_url_that_cannot_be_used_makes_no_folder(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Registry.init(tmp_path / "home", database=url)
    assert not (tmp_path / "home").exists()


def test_a_password_is_neither_kept_nor_shown(tmp_path: Path, new_postgres: Callable[[], str]) -> None:
    url = new_postgres().replace("postgres:@", "postgres:hunter2@")
    with Registry.init(tmp_path / "home", database=url):
        assert "hunter2" not in (tmp_path / "home" / "registry.json").read_text()
    catalog = Catalog(url)
    stamp(catalog, "r9999")
    catalog.close()
    with pytest.raises(SchemaError) as caught:
        Registry.open(tmp_path / "home", database=url)
    assert "hunter2" not in str(caught.value)


# SQLite as it should be set up


def test_sqlite_checks_foreign_keys_keeps_a_write_ahead_log_and_waits(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    with catalog.read() as first, catalog.read() as second:
        for session in (first, second):  # two connections, each as it should be
            settings = {
                name: session.scalar(text(f"PRAGMA {name}"))
                for name in ("foreign_keys", "journal_mode", "busy_timeout")
            }
            assert settings == {"foreign_keys": 1, "journal_mode": "wal", "busy_timeout": 60_000}
    catalog.close()


def test_a_reader_sees_one_state_while_a_writer_commits(catalog: Catalog) -> None:
    schema.upgrade(catalog)
    counting = text("SELECT count(*) FROM taps_objects")
    with catalog.read() as reader:
        before = reader.scalar(counting)
        with catalog.write() as writer:
            writer.execute(
                text("INSERT INTO taps_objects VALUES (:digest, '', 1, 'base', '2026-01-01')"), {"digest": "0" * 64}
            )
        assert (before, reader.scalar(counting)) == (0, 0)
    with catalog.read() as later:
        assert later.scalar(counting) == 1


def test_a_write_that_raises_changes_nothing(catalog: Catalog) -> None:
    schema.upgrade(catalog)
    with pytest.raises(RuntimeError, match="enough"), catalog.write() as session:  # noqa: PT012
        session.execute(text("INSERT INTO taps_registry VALUES ('me', '2026-01-01')"))
        raise RuntimeError("enough")
    with catalog.read() as session:
        assert session.scalar(text("SELECT count(*) FROM taps_registry")) == 0
