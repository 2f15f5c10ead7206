"""The main job, done by the installed wheel from an empty folder: what a user has after `pip install`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing that lies about gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in files.stdout.decode().splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment that has the wheel, and our dependencies from this environment."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--no-deps",
        "--quiet",
    ]
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*install, "--force-reinstall", "--no-index", str(wheel)], check=True)
    return folder / "bin" / "taps-registry"


def outside() -> dict[str, str]:
    """This environment without what would lead an installed program to a checkout or to somebody's registry."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TAPS_", "PYTHON"))}


def run(program: Path, *arguments: str, folder: Path) -> str:
    """What a command prints. It computes on one core: the tests beside it have the others."""
    environment = outside()
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [str(program), *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"taps_registry", next(top for top in tops if top.endswith(".dist-info"))}
    rooms = {name.split("/")[1] for name in names if name.startswith("taps_registry/")}
    assert rooms == {"__init__.py", "py.typed", "cli", "migrations", "plugins", "registry", "testing"}
    assert "taps_registry/migrations/script.py.mako" in names
    assert "taps_registry/registry/reporting/templates/report.html" in names


def test_the_installed_package_is_the_wheels(program: Path, tmp_path: Path) -> None:
    where = "import taps_registry; print(taps_registry.__file__)"
    python = program.with_name("python")
    command = [str(python), "-c", where]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=outside(), check=True)
    assert Path(found.stdout.strip()).is_relative_to(program.parent.parent)


@pytest.mark.slow
def test_the_demo_does_the_main_job_from_the_installed_wheel(program: Path, tmp_path: Path) -> None:
    told = run(program, "demo", folder=tmp_path)
    home = ("--home", "taps-demo/.taps")
    tasks = {
        task["name"]: task
        for task in json.loads(run(program, *home, "tasks", "--format", "json", folder=tmp_path))["tasks"]
    }
    assert {"digits", "greek", "cyrillic", "digits-head-only"} <= set(tasks)
    (cost,) = json.loads(run(program, *home, "cost", "--base", "base", "--format", "json", folder=tmp_path))["bases"]
    digits = next(task for task in cost["tasks"] if task["task"] == "digits")
    probe = next(task for task in cost["tasks"] if task["task"] == "digits-head-only")
    assert digits["metrics"]["test/accuracy"] >= 0.95
    assert digits["share_of_base"] <= 0.10
    little = [task["share_of_bytes"] for task in cost["tasks"] if task["task"] in ("greek", "cyrillic")]
    assert max(little) < 0.015, "1 % of the base, and the head"
    assert digits["metrics"]["test/accuracy"] > probe["metrics"]["test/accuracy"]
    assert cost["total"]["multiple"] < 1.5 < cost["total"]["multiple_if_copied"] == 5.0
    assert told.count("file unchanged, logits bit-identical") == 2
    assert f"digest {tasks['digits']['digest'][:16]}" in told
    assert json.loads(run(program, *home, "verify", "--deep", "--format", "json", folder=tmp_path)) == {"problems": []}
    again = run(program, "demo", folder=tmp_path)
    assert "digest" in again, "a second demo passes over what is done"
