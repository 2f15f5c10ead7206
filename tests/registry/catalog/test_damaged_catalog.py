"""A catalog edited by hand: artifacts say what they are, verify finds the edit, commands say it in one line."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taps_registry import Registry
from taps_registry.cli.main import main
from taps_registry.registry.catalog import bases, schema
from taps_registry.registry.catalog.damage import cells, references
from taps_registry.registry.catalog.engine import Catalog
from taps_registry.registry.errors import IntegrityError, StorageError, TapsError

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}

Edit = Callable[[str], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A registry with a base, a task and an interrupted one's reservation."""
    home = tmp_path_factory.mktemp("original") / "home"
    with Registry.init(home) as registry:
        registry.add_base("base", "test_resnet", random_init=True, input_size=32)
        registry.add_task("one", "base", images, **QUICK)
        registry.set_budget(base="base", max_params=10**9)
    return home


@pytest.fixture
def home(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "home"))


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    with Registry.open(home) as opened:
        yield opened


@pytest.fixture
def edit(home: Path) -> Edit:
    """Runs SQL on the catalog as somebody with the sqlite3 shell would."""

    return lambda sql: edit_at(home, sql)


def edit_at(home: Path, sql: str) -> None:
    with closing(sqlite3.connect(home / "catalog.sqlite")) as connection:
        connection.execute(sql)
        connection.commit()


def copied(home: Path, to: Path) -> Path:
    """A registry whose catalog is a copy; its other files are never changed in place."""

    def copy(source: str, target: str) -> None:
        shutil.copy(source, target) if ".sqlite" in source else os.link(source, target)

    return Path(shutil.copytree(home, to, copy_function=copy))


HARMLESS = {  # what is edited, and what `verify` calls it
    "preprocessing": "UPDATE taps_tasks SET input = replace(input, '0.5', '0.9')",
    "classes": """UPDATE taps_tasks SET classes = '["light", "grey", "dark", "more"]'""",
    "method": "UPDATE taps_artifacts SET method = 'full'",
    "encoding": "UPDATE taps_artifacts SET encoding = 'int8'",
    "bytes": "UPDATE taps_artifacts SET bytes = 7",
    "open layers": "UPDATE taps_artifacts SET open_layers = 77",
    "scores": "UPDATE taps_artifact_layers SET score = 7.5 WHERE score IS NOT NULL",
    "head parameters": "UPDATE taps_artifacts SET params_head = 7",
    "norms parameters": "UPDATE taps_artifacts SET params_norms = 7",
    "weights parameters": "UPDATE taps_artifacts SET params_weights = 7",
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_the_artifact_says_is_used_and_verify_finds_the_catalogs_copy(
    registry: Registry, edit: Edit, images: Path, tmp_path: Path, what: str
) -> None:
    paths = sorted(images.rglob("*.png"))[:3]
    before = registry.predict("one", paths, top=3), registry.evaluate("one", images, split="all")
    registry.export("one", tmp_path / "before.safetensors")
    assert registry.verify() == ()
    edit(HARMLESS[what])
    for deep in (False, True):
        (problem,) = registry.verify(deep=deep)
        assert problem.subject == "task one"
        assert problem.what.startswith(f"its {what}: ")
    assert (registry.predict("one", paths, top=3), registry.evaluate("one", images, split="all")) == before
    registry.export("one", tmp_path / "after.safetensors")
    assert (tmp_path / "after.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_recode_mends_the_catalogs_copy(registry: Registry, edit: Edit, images: Path) -> None:
    known = registry.task("one")
    for what in ("preprocessing", "classes", "method", "head parameters"):
        edit(HARMLESS[what])
    made = registry.recode("one", "bf16")
    assert (made.input, made.classes, made.method, made.params) == (
        *(known.input, known.classes, known.method, known.params),
    )
    assert registry.verify(deep=True) == ()


BROKEN = {  # table and column, and what is put there
    "taps_tasks input": ("'{'", "'[]'", """'{"size": 3}'""", "'7'"),
    "taps_tasks classes": ("'{}'", "'[1]'", "'null'", "'['", "''"),
    "taps_tasks created": ("'yesterday'",),
    "taps_tasks current_version": ("'one'", "1.5"),
    "taps_base_models arguments": ("'['", "'[]'"),
    "taps_base_models input": ("'{}'", "'null'"),
    "taps_base_models params": ("'many'",),
    "taps_layers params": ("'x'", "x'00'"),
    "taps_objects size": ("'x'",),
    "taps_artifacts metrics": ("""'{"val/accuracy": "good"}'""", "'1'"),
    "taps_artifacts settings": ("'{'", """'{"epochs": "x"}'"""),
    "taps_artifacts bytes": ("'x'", "x'00'"),
    "taps_artifact_layers score": ("'x'",),
    "taps_artifact_layers bytes": ("'x'",),
    "taps_runs settings": ("'{'", """'{"epochs": "x"}'"""),
    "taps_runs heartbeat": ("'x'",),
    "taps_budgets max_params": ("'x'",),
}
COMMANDS = (
    *("bases", "tasks", "show one", "cost", "cost --by layer", "budget show", "runs", "report --output -", "verify"),
    *("verify --deep", "gc --dry-run", "predict one {image}", "evaluate one --data {images} --split all"),
    *("export one {out}", "recode one --encoding bf16", "add-task two --base base --data {images} --estimate"),
    *("remove one", "gc"),
)


@pytest.mark.parametrize("place", BROKEN)
def test_a_broken_cell_is_one_line_in_every_command_and_found_by_verify(
    home: Path, images: Path, tmp_path: Path, place: str
) -> None:
    table, column = place.split()
    wanted = {"image": next(images.rglob("*.png")), "images": images, "out": tmp_path / "out.safetensors"}
    for number, value in enumerate(BROKEN[place]):
        broken = copied(home, tmp_path / f"broken{number}")
        edit_at(broken, f"UPDATE {table} SET {column} = {value}")
        said = {}
        for command in COMMANDS:
            at = copied(broken, tmp_path / "at")
            done = CliRunner().invoke(main, ["--home", str(at), *command.format(**wanted).split()])
            shutil.rmtree(at)
            assert done.exception is None or isinstance(done.exception, TapsError | SystemExit), (value, command)
            assert "\n" not in str(done.exception)
            said[command] = f"{done.output} {done.exception}"
        assert f"catalog: {table}, row " in said["verify --deep"]
        assert f", column {column}: " in said["verify --deep"]
        assert any(f"damaged, in {table}, row " in line and f"column {column}" in line for line in said.values())


def test_the_error_names_table_row_and_column(registry: Registry, edit: Edit) -> None:
    edit("UPDATE taps_tasks SET classes = '{'")
    with pytest.raises(IntegrityError, match=r"damaged, in taps_tasks, row 1 \(one\), column classes: Expecting"):
        registry.tasks()


def test_a_mistake_of_ours_in_a_sound_catalog_stays_what_it_is(registry: Registry) -> None:
    with pytest.raises(KeyError), registry._context.catalog.read():
        raise KeyError("x")


def test_a_row_that_refers_to_none_is_found(registry: Registry, edit: Edit) -> None:
    edit("DELETE FROM taps_objects WHERE kind = 'artifact'")
    problems = {problem.what for problem in registry.verify(deep=True) if problem.subject == "catalog"}
    assert problems == {"taps_artifacts, row 1, column digest: it refers to no row of taps_objects"}


def test_a_version_that_is_not_there_is_found(registry: Registry, edit: Edit) -> None:
    edit("UPDATE taps_tasks SET current_version = 9")
    (problem,) = registry.verify()
    assert problem.what == "the catalog says that it is ready, but has no version of it"
    with pytest.raises(TapsError):
        registry.load("one")


def test_deep_verification_reads_the_pages_of_sqlite(registry: Registry, home: Path) -> None:
    assert registry.verify(deep=True) == ()
    registry.close()
    path = home / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'taps_budgets'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(content)
    problems = [problem for problem in registry.verify(deep=True) if problem.subject == "catalog"]
    assert problems
    with pytest.raises(StorageError, match="malformed"):
        registry.budgets()


def test_the_same_is_found_in_postgresql(new_postgres: Callable[[], str]) -> None:
    with closing(Catalog(new_postgres())) as catalog:
        schema.upgrade(catalog)
        with catalog.connect_to_write() as connection:
            connection.exec_driver_sql("INSERT INTO taps_objects VALUES ('d', '', 1, 'base', now())")
            connection.exec_driver_sql(
                "INSERT INTO taps_base_models (id, name, model, arguments, plugin, plugin_version, digest, "
                "object_digest, params, backbone_params, input, created) "
                "VALUES (1, 'b', 'm', '[]', 'p', 'p 1', 'd', 'd', 1, 1, '{}', now())"
            )
        with catalog.read() as session:
            found = list(cells(session.connection()))
            assert list(references(session.connection())) == []
        assert [line.partition(":")[0] for line in found] == [
            "taps_base_models, row 1 (b), column arguments",
            "taps_base_models, row 1 (b), column input",
        ]
        with pytest.raises(IntegrityError, match=r"row 1 \(b\), column arguments"), catalog.read() as session:
            bases.listing(session)
