"""What is installed is what is here, and the promises that only the source as a whole can keep."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import taps_registry
from taps_registry.registry import errors

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGES = {"tests", "docs", "examples", "benchmarks", "build", "dist"}
RUN_BY_ALEMBIC = "taps_registry.migrations.env"  # does its work when it is imported


def sources() -> Iterator[Path]:
    """Every Python file that is part of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        first = path.relative_to(ROOT).parts[0]
        if first not in NOT_PACKAGES and not first.startswith("."):
            yield path


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("taps_registry", *(part for part in parts if part != "__init__")))


SOURCES = list(sources())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_list_of_packages_is_the_list_of_folders() -> None:
    folders = {module_name(path) for path in SOURCES if path.name == "__init__.py"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(folders) == sorted(listed)
    assert len(listed) == len(set(listed))


def test_every_module_is_in_a_package() -> None:
    assert [path for path in SOURCES if not (path.parent / "__init__.py").exists()] == []


def test_the_root_has_no_module_but_the_package_itself() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_the_files_that_are_no_modules_are_package_data() -> None:
    assert PROJECT["tool"]["setuptools"]["package-data"] == {
        "taps_registry": ["py.typed"],
        "taps_registry.migrations": ["script.py.mako"],
        "taps_registry.registry.reporting": ["templates/*"],
    }
    installed = Path(taps_registry.__file__).parent
    assert (installed / "py.typed").exists()
    assert (installed / "migrations" / "script.py.mako").exists()
    templates = installed / "registry" / "reporting" / "templates"
    source = ROOT / "registry" / "reporting" / "templates"
    assert {path.name for path in templates.iterdir()} == {path.name for path in source.iterdir()}


@pytest.mark.parametrize("name", [module_name(path) for path in SOURCES if module_name(path) != RUN_BY_ALEMBIC])
def test_every_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("point", PROJECT["project"]["entry-points"]["taps_registry"].items(), ids=lambda p: p[0])
def test_every_built_in_plugin_is_a_module_with_a_hook(point: tuple[str, str]) -> None:
    module = importlib.import_module(point[1])
    assert [name for name in vars(module) if name.startswith("register_")]


def test_every_module_with_a_hook_has_an_entry_point() -> None:
    rooms = [ROOT / "plugins" / room for room in ("architectures", "methods", "encodings", "trackers")]
    paths = [path for room in rooms for path in room.glob("*.py") if "\n@hookimpl\n" in path.read_text("utf-8")]
    modules = {module_name(path) for path in paths}
    assert len(modules) > 20
    assert modules == set(PROJECT["project"]["entry-points"]["taps_registry"].values())


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pinned if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pinned]
    assert len(names) == len(set(names))


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    optional = [name for names in PROJECT["project"]["optional-dependencies"].values() for name in names]
    wanted = {re.split(r"[\[><=]", name)[0].lower() for name in (*PROJECT["project"]["dependencies"], *optional)}
    assert wanted - pinned <= {"setuptools"}


# Errors


def error_classes() -> list[type[errors.TapsError]]:
    return [getattr(errors, name) for name in errors.__all__]


def test_all_errors_are_in_the_list_of_names() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == set(errors.__all__)


def test_the_exit_codes_are_distinct() -> None:
    """But for a class that says no code of its own: it has its parent's."""
    own = [kind.exit_code for kind in error_classes() if "exit_code" in vars(kind)]
    assert len(own) == len(set(own)) == len(error_classes()) - 1
    assert errors.PartitionError.exit_code == errors.PluginError.exit_code


def test_the_exit_codes_are_those_of_the_docstring() -> None:
    written = dict(re.findall(r"^[\s│├└─]*(\w+)\s+(\d+)(?:\s|$)", str(errors.__doc__), re.MULTILINE))
    assert written == {kind.__name__: str(kind.exit_code) for kind in error_classes() if "exit_code" in vars(kind)}
    assert "PartitionError" in str(errors.__doc__)


def test_all_errors_are_taps_errors_with_a_code_that_a_shell_can_see() -> None:
    assert all(issubclass(kind, errors.TapsError) and 0 < kind.exit_code < 256 for kind in error_classes())


# Promises


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Ways to run code that is in a file of data."""
    loaders = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "skops"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in loaders)
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).partition(".")[0] in loaders:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            given = {word.arg: word.value for word in node.keywords}
            called = ast.unparse(node.func)
            safe = isinstance(value := given.get("weights_only"), ast.Constant) and value.value is True
            if (called == "torch.load" or "weights_only" in given) and not safe:
                yield called
            if "allow_pickle" in given or called.endswith("read_pickle"):
                yield called


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_pickle_is_loaded(path: Path) -> None:
    assert list(unsafe(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "line", ["import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)"]
)
def test_the_search_for_pickles_finds_them(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


def test_the_face_of_the_package_is_three_names() -> None:
    assert sorted(taps_registry.__all__) == ["Registry", "TapsError", "__version__"]
    assert taps_registry.Registry.__name__ == "Registry"
    assert issubclass(taps_registry.TapsError, Exception)
    assert taps_registry.__version__ == PROJECT["project"]["version"]


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = taps_registry.nonsense


def test_modules_import_each_other_relatively() -> None:
    """But for those that alembic runs as files."""
    absolute = {
        module_name(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("taps_registry")
    }
    assert not [name for name in absolute if not name.startswith("taps_registry.migrations.")]
