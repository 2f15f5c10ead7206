"""The catalog's own rules, on SQLite and PostgreSQL: names, versions, removal, many writers at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from taps_registry import Registry
from taps_registry.registry.catalog import bases, budgets, costs, runs, schema, tasks
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.catalog.tables import now
from taps_registry.registry.catalog.tasks import Published
from taps_registry.registry.errors import BudgetError, BusyError, NameTakenError, NotFoundError, StorageError
from taps_registry.registry.models.bases import load
from taps_registry.registry.records import Base, InputConfig, LayerInfo, Params, Task, TaskLayer
from taps_registry.registry.store import objects

QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
INPUT = InputConfig((3, 8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear", 0.95, "center")
BASE = Base(
    name="base",
    model="toy",
    arguments={"depth": 3},
    plugin="generic",
    plugin_version="taps-registry 0.1.0",
    digest="a" * 64,
    object="b" * 64,
    params=100,
    backbone_params=80,
    bytes=480,
    input=INPUT,
    created=now(),
    layers=(LayerInfo("conv", "conv", "stem", 60), LayerInfo("bn", "norm", "stem", 20)),
)
MADE = Published(
    digest="c" * 64,
    checksum="e" * 64,
    bytes=300,
    method="taps",
    encoding="fp32",
    open_layers=1,
    gated_layers=1,
    params=Params(60, 20, 5),
    classes=("yes", "no"),
    input=INPUT,
    metrics={"val/accuracy": 0.5},
    settings={"epochs": 1},
    layers=(TaskLayer("conv", "conv", "stem", True, 0.2, 60, 240), TaskLayer("bn", "norm", "stem", True, None, 20, 80)),
    packages={"method taps": "taps-registry 0.1.0"},
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("new_postgres")())
    return f"sqlite:///{tmp_path / 'catalog.sqlite'}"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    """A catalog with one base, named ``base``, of a toy model."""
    made = Catalog(url)
    schema.upgrade(made)
    with made.write() as session:
        bases.add(session, BASE, "f" * 64)
    yield made
    made.close()


def reserve(catalog: Catalog, name: str, run: str = "") -> None:
    """Take a name, with a run where its id is given."""
    with catalog.write() as session:
        task = tasks.reserve(session, name, "base")
        if run:
            runs.begin(session, run, task, {"epochs": 3, "method": "taps", "seed": 5}, "f" * 64, "none")


def publish(catalog: Catalog, name: str, run: str, made: Published = MADE) -> int:
    with catalog.write() as session:
        return tasks.publish(session, name, run, made)


def get(catalog: Catalog, name: str) -> Task:
    with catalog.read() as session:
        return tasks.get(session, name)


# Names


def test_names_are_sorted_alike_by_every_database(catalog: Catalog) -> None:
    sent: list[str] = []
    event.listen(catalog.engine, "before_cursor_execute", lambda *call: sent.append(call[2]))
    for name in ("b", "a-1", "B", "a.1", "a1"):
        reserve(catalog, name)
    with catalog.read() as session:
        assert [task.name for task in tasks.listing(session)] == ["B", "a-1", "a.1", "a1", "b"]
        bases.listing(session)
        budgets.listing(session)
        costs.report(session)
    ordered = [
        order for sql in sent if (order := sql.partition("ORDER BY")[2]) and ("name" in order or "scope" in order)
    ]
    assert len(ordered) >= 5
    if catalog.engine.dialect.name == "postgresql":  # a server in another locale than C would sort them as it likes
        names = [column for order in ordered for column in order.split(",") if "name" in column or "scope" in column]
        assert [column for column in names if 'COLLATE "C"' not in column] == []


def test_a_base_is_found_as_it_was_added(catalog: Catalog) -> None:
    with catalog.read() as session:
        found = bases.get(session, "base")
        assert bases.listing(session) == (found,)
    assert replace(found, created=BASE.created) == BASE
    assert abs((now() - found.created).total_seconds()) < 60, "it is the time of adding, in UTC"


def test_the_name_of_a_base_is_taken_once(catalog: Catalog) -> None:
    with (
        pytest.raises(NameTakenError, match=r"base named 'base' already exists.*taps-registry bases"),
        catalog.write() as session,
    ):
        bases.add(session, replace(BASE, digest="d" * 64), "f" * 64)
    with catalog.read() as session:
        assert [base.digest for base in bases.listing(session)] == [BASE.digest]


def test_two_bases_may_have_the_same_object(catalog: Catalog) -> None:
    with catalog.write() as session:
        bases.add(session, replace(BASE, name="twin"), "f" * 64)
    with catalog.read() as session:
        assert [base.name for base in bases.listing(session)] == ["base", "twin"]
        assert session.scalar(text("SELECT count(*) FROM taps_objects")) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bsae", r"There is no base 'bsae'\. Did you mean 'base'\? There are: base$"),
        ("zzz", r"There is no base 'zzz'\. There are: base$"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_those_that_are(catalog: Catalog, name: str, said: str) -> None:
    for use in (bases.get, lambda session, name: tasks.reserve(session, "task", name), tasks.listing):
        with pytest.raises(NotFoundError, match=said), catalog.write() as session:
            use(session, name)
    with catalog.read() as session:
        assert tasks.listing(session) == ()


def test_a_task_that_is_not_there_is_named_with_those_that_are(catalog: Catalog) -> None:
    with catalog.read() as session, pytest.raises(NotFoundError, match=r"has none yet\. Type: taps-registry add-task"):
        tasks.get(session, "cars")
    for number in range(12):
        reserve(catalog, f"cars{number:02}")
    with catalog.read() as session:
        with pytest.raises(NotFoundError, match=r"Did you mean 'cars\d+'\? There are: cars00, .*cars09, \.\.\.$"):
            tasks.get(session, "car")
        with pytest.raises(NotFoundError, match=r"There is no task 'Birds'\. There are"):
            tasks.remove(session, "Birds")


def test_a_name_that_is_reserved_is_taken_and_says_how_to_go_on(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    with catalog.write() as session:
        runs.update(session, "1" * 32, state="interrupted", epoch=2)
    said = r"task in training: its run is interrupted after 2 of 3 epochs.*add-task cars --resume.*remove cars"
    with pytest.raises(NameTakenError, match=said):
        reserve(catalog, "cars")
    publish(catalog, "cars", "1" * 32)
    with pytest.raises(NameTakenError, match=r"A task named 'cars' already exists.*taps-registry remove cars"):
        reserve(catalog, "cars")


def test_names_differ_in_case(catalog: Catalog) -> None:
    reserve(catalog, "cars")
    reserve(catalog, "Cars")
    with catalog.read() as session:
        assert {task.name for task in tasks.listing(session)} == {"cars", "Cars"}


def test_of_eight_that_reserve_one_name_at_once_exactly_one_wins(catalog: Catalog, url: str) -> None:
    barrier = threading.Barrier(8)

    def attempt(number: int) -> str:
        own = Catalog(url)
        try:
            barrier.wait()
            reserve(own, "cars", f"{number:032}")
        except NameTakenError as error:
            return str(error)
        finally:
            own.close()
        return "won"

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(attempt, range(8)))
    assert ended.count("won") == 1
    assert all("is taken by a task in training" in said for said in ended if said != "won")
    with catalog.read() as session:
        assert [run.id for run in runs.listing(session)] == [f"{ended.index('won'):032}"]


RESERVE = """
import sys, time
from pathlib import Path
from taps_registry.registry.catalog import tasks
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.errors import NameTakenError
catalog = Catalog(sys.argv[1])
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.002)
won = 0
for number in range(20):
    try:
        with catalog.write() as session:
            tasks.reserve(session, f"cars{number}", "base")
        won += 1
    except NameTakenError:
        pass
catalog.close()
print(won)
"""


def test_four_processes_that_reserve_the_same_twenty_names_share_them(
    catalog: Catalog, url: str, tmp_path: Path
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVE, url, str(tmp_path / "start")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()
    ended = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in ended] == [""] * 4
    assert sum(int(won) for won, _ in ended) == 20
    with catalog.read() as session:
        assert len(tasks.listing(session)) == 20


def test_eight_that_publish_at_once_never_exceed_a_budget(catalog: Catalog, url: str) -> None:
    with catalog.write() as session:
        budgets.put(session, "base", 3 * MADE.bytes, None)
    for number in range(8):
        reserve(catalog, f"task{number}", f"{number:032}")
    barrier = threading.Barrier(8)

    def attempt(number: int) -> bool:
        own = Catalog(url)
        try:
            barrier.wait()
            publish(own, f"task{number}", f"{number:032}", replace(MADE, digest=f"{number:064}"))
        except BudgetError:
            return False
        finally:
            own.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 3
    with catalog.read() as session:
        (use,) = budgets.listing(session)
        assert (use.used_bytes, use.max_bytes) == (900, 900)
        assert sum(task.state == "ready" for task in tasks.listing(session)) == 3


# Versions


def test_a_task_in_training_has_neither_version_nor_digest(catalog: Catalog) -> None:
    reserve(catalog, "cars")
    task = get(catalog, "cars")
    assert (task.state, task.version, task.digest, task.layers) == ("training", None, "", ())
    with catalog.read() as session, pytest.raises(NotFoundError, match=r"still in training.*add-task cars --resume"):
        tasks.ready(session, "cars")


def test_a_published_task_is_what_was_published(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    assert publish(catalog, "cars", "1" * 32) == 1
    task = get(catalog, "cars")
    assert (task.state, task.version, task.base, task.run) == ("ready", 1, "base", "1" * 32)
    for name in ("digest", "bytes", "method", "encoding", "open_layers", "gated_layers", "params", "input"):
        assert getattr(task, name) == getattr(MADE, name), name
    assert (task.classes, task.metrics, task.settings) == (MADE.classes, MADE.metrics, MADE.settings)
    assert task.layers == tuple(MADE.layers)
    with catalog.read() as session:
        assert tasks.ready(session, "cars") == task
        assert tasks.listing(session) == (replace(task, layers=()),)


def test_a_second_process_that_finishes_a_task_leaves_the_first_ones_result(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    publish(catalog, "cars", "1" * 32)
    with pytest.raises(BusyError, match="has finished 'cars' in the meantime; its result is kept"):
        publish(catalog, "cars", "1" * 32, replace(MADE, digest="d" * 64))
    assert get(catalog, "cars").digest == MADE.digest


def test_a_task_that_was_removed_while_it_trained_is_not_published(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    with catalog.write() as session:
        tasks.remove(session, "cars")
    with pytest.raises(NotFoundError, match="no task 'cars'"):
        publish(catalog, "cars", "1" * 32)


def test_the_newest_version_is_the_task_and_alone_takes_room(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    publish(catalog, "cars", "1" * 32)
    with catalog.write() as session:
        session.execute(text("UPDATE taps_tasks SET state = 'training'"))
    second = replace(MADE, digest="d" * 64, bytes=100, params=Params(0, 20, 5))
    assert publish(catalog, "cars", "1" * 32, second) == 2
    task = get(catalog, "cars")
    assert (task.version, task.digest, task.bytes) == (2, "d" * 64, 100)
    with catalog.write() as session:
        budgets.put(session, None, 1000, None)
        (use,) = budgets.listing(session)
        assert (use.used_bytes, use.used_params) == (100, 25)
        (base,) = costs.report(session, by="layer").bases
        assert [(cost.version, cost.bytes) for cost in base.tasks] == [(2, 100)]
        assert base.total.bytes == BASE.bytes + 100
        assert [row.open for row in base.by] == [1, 1]


# Removal


def rows(catalog: Catalog, table: str) -> int:
    with catalog.read() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def test_removing_a_task_takes_its_versions_along_and_nothing_else(catalog: Catalog) -> None:
    for number, name in enumerate(("cars", "birds")):
        reserve(catalog, name, f"{number:032}")
        publish(catalog, name, f"{number:032}")
    with catalog.write() as session:
        tasks.remove(session, "cars")
    assert {table: rows(catalog, f"taps_{table}") for table in ("tasks", "artifacts", "artifact_layers")} == {
        "tasks": 1,
        "artifacts": 1,
        "artifact_layers": 2,
    }
    assert {table: rows(catalog, f"taps_{table}") for table in ("base_models", "layers", "objects", "runs")} == {
        "base_models": 1,
        "layers": 2,
        "objects": 2,
        "runs": 2,
    }
    assert get(catalog, "birds").layers == tuple(MADE.layers)
    reserve(catalog, "cars")


def test_runs_outlive_their_tasks(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    with catalog.write() as session:
        runs.update(session, "1" * 32, state="failed", error="no luck", epoch=2)
        tasks.remove(session, "cars")
    with catalog.read() as session:
        (run,) = runs.listing(session)
        assert runs.listing(session, "cars") == (run,)
        assert runs.listing(session, "birds") == ()
        assert runs.get(session, "1" * 32) == run
        assert runs.of_task(session, "cars") is None
        with pytest.raises(NotFoundError, match="no run 'x'"):
            runs.get(session, "x")
    assert (run.task, run.base, run.state, run.error) == ("cars", "base", "failed", "no luck")
    assert (run.epoch, run.epochs, run.method, run.seed) == (2, 3, "taps", 5)


def test_the_run_of_a_name_that_was_given_up_is_not_resumed_by_its_next_owner(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    with catalog.write() as session:
        tasks.remove(session, "cars")
    reserve(catalog, "cars", "2" * 32)
    with catalog.read() as session:
        found = runs.of_task(session, "cars")
        assert found is not None
        assert found.id == "2" * 32
        assert [run.id for run in runs.listing(session, "cars")] == ["2" * 32, "1" * 32]


def test_times_come_back_in_utc(catalog: Catalog) -> None:
    reserve(catalog, "cars", "1" * 32)
    with catalog.read() as session:
        (run,) = runs.listing(session)
    for moment in (run.created, run.heartbeat):
        offset = moment.utcoffset()
        assert offset is not None
        assert offset.total_seconds() == 0
        assert abs((now() - moment).total_seconds()) < 60


# How the databases answer


def plans(catalog: Catalog, ask: Callable[[Session], object]) -> list[str]:
    """The plan of each query that ``ask`` runs, as the database explains it."""
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        asked.append((statement, parameters))

    with catalog.read() as session:
        event.listen(catalog.engine, "before_cursor_execute", note)
        ask(session)
        event.remove(catalog.engine, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN " if catalog.engine.dialect.name == "sqlite" else "EXPLAIN "
        return [
            "\n".join(str(line[-1]) for line in session.connection().exec_driver_sql(explain + statement, parameters))
            for statement, parameters in asked
            if statement.startswith("SELECT")
        ]


@pytest.fixture
def filled(catalog: Catalog) -> Catalog:
    """The catalog with three tasks, one of them in training, and budgets."""
    for number, name in enumerate(("birds", "cars", "dogs")):
        reserve(catalog, name, f"{number:032}")
        if name != "dogs":
            publish(catalog, name, f"{number:032}", replace(MADE, digest=f"{number:064}"))
    with catalog.write() as session:
        budgets.put(session, "base", 10_000, None)
        budgets.put(session, None, None, 10_000)
    return catalog


@pytest.mark.parametrize(
    "ask",
    [
        lambda session: costs.report(session),
        lambda session: costs.report(session, ["cars"], "base"),
        lambda session: tasks.listing(session),
        lambda session: tasks.listing(session, "base"),
        lambda session: budgets.listing(session),
        lambda session: budgets.require_room(session, bases.row(session, "base"), 1, 1, "more"),
    ],
    ids=["cost", "cost of a task", "tasks", "tasks of a base", "budget show", "room in the budgets"],
)
def test_the_long_table_of_layers_is_left_alone(filled: Catalog, ask: Callable[[Session], object]) -> None:
    found = plans(filled, ask)
    assert any("taps_artifacts" in plan for plan in found)
    assert not [plan for plan in found if "artifact_layers" in plan]


@pytest.mark.parametrize("by", ["layer", "kind"])
def test_costs_by_layer_read_the_long_table_in_one_grouped_query(filled: Catalog, by: str) -> None:
    (plan,) = [
        plan for plan in plans(filled, lambda session: costs.report(session, by=by)) if "artifact_layers" in plan
    ]
    assert "group" in plan.lower() or "Aggregate" in plan


def test_a_task_is_shown_with_its_own_layers_found_by_their_key(filled: Catalog) -> None:
    (plan,) = [plan for plan in plans(filled, lambda session: tasks.get(session, "cars")) if "artifact_layers" in plan]
    if filled.engine.dialect.name == "sqlite":  # PostgreSQL reads tables as short as these in full
        assert "SEARCH taps_artifact_layers USING" in plan
        assert "SCAN taps_artifact_layers" not in plan


@pytest.mark.parametrize("ask", [lambda s: costs.report(s, by="layer"), tasks.listing, budgets.listing])
def test_more_tasks_take_no_more_queries(filled: Catalog, ask: Callable[[Session], object]) -> None:
    before = len(plans(filled, ask))
    for number in range(10, 15):
        reserve(filled, f"task{number}", f"{number:032}")
        publish(filled, f"task{number}", f"{number:032}", replace(MADE, digest=f"{number:064}"))
    assert len(plans(filled, ask)) == before


# Checksums


def test_an_object_is_recorded_with_its_checksum(catalog: Catalog) -> None:
    reserve(catalog, "task", "1" * 32)
    publish(catalog, "task", "1" * 32)
    with catalog.read() as session:
        found = [bases.checksum(session, digest) for digest in (BASE.object, MADE.digest, "0" * 64)]
    assert found == ["f" * 64, "e" * 64, None]
    with catalog.write() as session:
        bases.add(session, replace(BASE, name="twin"), "f" * 64)
    with catalog.read() as session:
        assert bases.checksum(session, BASE.object) == "f" * 64


def in_a_fork(work: Callable[[], None]) -> int:
    """The exit code of a forked process that does this: 0, or 1 if it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about forking beside other threads
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  (pytest's own way out is the parent's)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_has_connections_of_its_own(catalog: Catalog) -> None:
    with catalog.read() as session:
        known = bases.listing(session)
    opened: list[int] = []
    event.listen(catalog.engine, "connect", lambda connection, record: opened.append(os.getpid()))

    def child() -> None:
        for number in range(20):
            with catalog.write() as session:
                tasks.reserve(session, f"child{number}", "base")
        assert os.getpid() in opened

    assert in_a_fork(child) == 0
    with catalog.read() as session:
        assert bases.listing(session) == known
        assert len(tasks.listing(session)) == 20


def test_a_transaction_of_another_thread_survives_a_fork(catalog: Catalog) -> None:
    begun, forked = threading.Event(), threading.Event()

    def write() -> None:
        with catalog.write() as session:
            tasks.reserve(session, "slow", "base")
            begun.set()
            forked.wait()

    def child() -> None:
        with catalog.read() as session:
            assert tasks.listing(session) == ()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        begun.wait()
        assert in_a_fork(child) == 0
        forked.set()
        writing.result()
    with catalog.read() as session:
        assert [task.name for task in tasks.listing(session)] == ["slow"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_object_has_the_checksum_of_its_file_which_spares_loading_its_digest(
    tmp_path: Path, images: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Base, artifact, what tasks have in common, and a recoded artifact."""
    database = request.getfixturevalue("new_postgres")() if kind == "postgresql" else ""
    with Registry.init(tmp_path / "home", database=database) as registry:
        registry.add_base("base", "test_vit", random_init=True, input_size=32)
        registry.add_task("task", "base", images, **QUICK, method="vmt-adapter", rank=4)
        registry.recode("task", encoding="bf16")
        with registry._context.catalog.read() as session:
            known = dict(session.execute(text("SELECT digest, checksum FROM taps_objects")).all())
            kinds = session.scalars(text("SELECT kind FROM taps_objects ORDER BY kind")).all()
        assert kinds == ["artifact", "artifact", "base", "common"]
        path = registry._context.store.path
        assert known == {digest: blake3(path(digest).read_bytes()).hexdigest() for digest in known}

        monkeypatch.setattr(objects, "sha256", lambda path: pytest.fail(f"the digest of {path} was computed"))
        registry.load("task")


def test_a_catalog_that_does_not_answer_for_a_checksum_is_an_error_of_ours(
    registry: Registry,
) -> None:
    base = registry.base("base")
    registry.close()
    for path in registry.home.glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(StorageError, match="is not available"):
        load(registry._context, base)


# The whole way, with the catalog in PostgreSQL


def test_a_registry_with_its_catalog_in_postgresql_goes_the_whole_way(
    tmp_path: Path, images: Path, new_postgres: Callable[[], str]
) -> None:
    database = new_postgres()
    with Registry.init(tmp_path / "home", database=database) as registry:
        registry.add_base("base", "test_resnet", random_init=True, input_size=32)
        task = registry.add_task("shades", "base", images, **QUICK)
        registry.set_budget(base="base", max_bytes=task.bytes)
        with pytest.raises(BudgetError, match="exceeded by"):
            registry.add_task("more", "base", images, **QUICK)
    assert not (tmp_path / "home" / "catalog.sqlite").exists()

    with Registry.open(tmp_path / "home", database=database) as registry:
        assert registry.task("shades") == task
        (cost,) = registry.cost(by="kind").bases
        assert (cost.tasks[0].bytes, cost.tasks[0].params) == (task.bytes, task.params)
        assert sum(row.task_params for row in cost.by) == task.params.weights + task.params.norms
        assert cost.budget is not None
        assert cost.budget.used_bytes == task.bytes
        assert 0 <= registry.evaluate("shades", images).accuracy <= 1
        assert registry.verify(deep=True) == ()
        registry.remove("shades")
        assert registry.tasks() == ()
        assert [run.state for run in registry.runs("shades")] == ["finished"]
        assert f"object {task.digest}" in registry.gc().removed
        assert registry.verify(deep=True) == ()


def test_a_registry_with_its_catalog_in_postgresql_does_without_the_file_of_sqlite(
    tmp_path: Path, new_postgres: Callable[[], str]
) -> None:
    with Registry.init(tmp_path / "home", database=new_postgres()) as registry:
        assert registry.bases() == ()
    assert sorted(path.name for path in (tmp_path / "home").iterdir() if path.name != "lock") == [
        "objects",
        "registry.json",
        "runs",
    ]
