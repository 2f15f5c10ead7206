"""What must be quick imports nothing heavy: measured in processes that have not imported anything yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from taps_registry import Registry

HEAVY = ("torch", "torchvision", "timm", "mlflow", "safetensors", "accelerate", "matplotlib", "sklearn")

# Runs commands one after the other and prints, on the last line, what each left in sys.modules.
RUN = """
import json, sys
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
found = {}
for arguments in json.loads(sys.argv[1]):
    code = _run(arguments, Session())
    found[" ".join(arguments)] = [code, sorted({name.partition(".")[0] for name in sys.modules})]
print()
print(json.dumps(found))
"""

COMMANDS = {
    "--help": 0,
    "add-base --help": 0,
    "add-task --help": 0,
    "bases": 0,
    "tasks": 0,
    "tasks --format json": 0,
    "cost": 0,
    "cost --by layer --format json": 0,
    "show base": 0,
    "budget set --max-bytes 1GB": 0,
    "budget show": 0,
    "budget clear": 0,
    "report -o -": 0,
    "runs": 0,
    "verify": 0,
    "tasks --base x": 5,
    "cost no-such-task": 5,
    "tsks": 2,
}


def printed(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The last line that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    """Exit code and imported packages after each command, all of them in one process."""
    home = tmp_path_factory.mktemp("lazy") / "home"
    with Registry.init(home) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
    environment = {"TAPS_REGISTRY_HOME": str(home)}
    lines = json.dumps([command.split() for command in COMMANDS])
    found: dict[str, tuple[int, list[str]]] = json.loads(printed(RUN, lines, environment=environment))
    return found


@pytest.mark.parametrize(("command", "code"), COMMANDS.items())
def test_a_command_that_only_asks_the_catalog_imports_nothing_heavy(
    imported: dict[str, tuple[int, list[str]]], command: str, code: int
) -> None:
    """A command listed after one that breaks this is listed too: look at the first."""
    found, packages = imported[command]
    assert found == code
    assert [name for name in HEAVY if name in packages] == []


def test_a_task_without_a_tracker_is_added_and_used_without_what_draws_and_scores(tmp_path: Path, images: Path) -> None:
    home = tmp_path / "home"
    with Registry.init(home) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
    image = next(images.rglob("*.png"))
    add = ["add-task", "task", "--base", "base", "--data", str(images), "--epochs", "1", "--tracker", "none"]
    commands = [[*add, "--workers", "0"], ["predict", "task", str(image)]]
    found = json.loads(printed(RUN, json.dumps(commands), environment={"TAPS_REGISTRY_HOME": str(home)}))
    for code, packages in found.values():
        assert code == 0
        assert "torch" in packages
        assert [name for name in ("mlflow", "matplotlib", "sklearn") if name in packages] == []


def test_help_does_not_even_import_the_database(imported: dict[str, tuple[int, list[str]]]) -> None:
    assert "sqlalchemy" not in imported["--help"][1]
    assert "sqlalchemy" in imported["bases"][1]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import taps_registry", (*HEAVY, "sqlalchemy", "click", "numpy", "PIL", "pluggy")),
        ("from taps_registry import Registry, TapsError", (*HEAVY, "click")),
        ("import taps_registry.plugins", (*HEAVY, "click", "sqlalchemy")),
        ("from taps_registry.registry.errors import TapsError", (*HEAVY, "click", "sqlalchemy")),
    ],
)
def test_an_import_of_the_package_brings_little(statement: str, absent: tuple[str, ...]) -> None:
    packages = json.loads(
        printed(f"{statement}; import json, sys; print(json.dumps([n for n in sys.modules if '.' not in n]))")
    )
    assert "taps_registry" in packages
    assert [name for name in absent if name in packages] == []
