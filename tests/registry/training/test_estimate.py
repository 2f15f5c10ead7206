"""What a task would cost, said before it trains; and budgets, which hold the least of it against what is left."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taps_registry import Registry
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.registry.errors import BudgetError, Interrupted, TapsError
from taps_registry.registry.records import Estimate, Footprint, Params, Task
from taps_registry.registry.store.artifact import tensor_bytes
from taps_registry.registry.training.progress import EpochResult, Progress

QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
GATED = {"epochs": 3, "sparsity": 1.0, "score_lr": 0.1, "lr": 5e-3}  # some gates close
MODELS = {"resnet": "test_resnet", "vit": "test_vit"}
RegistryOf = Callable[[str], Registry]


@pytest.fixture(scope="module")
def registry_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryOf]:
    """A registry with a base of each kind, made when it is first asked for."""
    with ExitStack() as stack:
        made: dict[str, Registry] = {}

        def get(backbone: str) -> Registry:
            if backbone not in made:
                registry = stack.enter_context(Registry.init(tmp_path_factory.mktemp(backbone) / "home"))
                registry.add_base("base", MODELS[backbone], random_init=True, input_size=32)
                made[backbone] = registry
            return made[backbone]

        yield get


def path_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def nbytes(registry: Registry, digest: str) -> int:
    """Of the tensors of an artifact, without its header."""
    return sum(tensor_bytes(path_of(registry, digest)).values())


def stored(registry: Registry, task: Task) -> Footprint:
    """What the task brought: its own file, and that of its set if it began one."""
    begun = [common for common in registry.cost().bases[0].sets if common.tasks == (task.name,)]
    params = Params(task.params.weights + sum(c.params for c in begun), task.params.norms, task.params.head)
    extra = sum(4 * common.params for common in begun)
    return Footprint(params, nbytes(registry, task.digest) + extra)


def numbers(size: Footprint) -> tuple[int, ...]:
    return size.params.weights, size.params.norms, size.params.head, size.params.total, size.bytes


def taken(registry: Registry, name: str, images: Path, **settings: Any) -> tuple[Estimate, Footprint]:
    """What is said of a task, and what comes of it."""
    said = registry.estimate(name, "base", images, **{**QUICK, **settings})
    return said, stored(registry, registry.add_task(name, "base", images, **{**QUICK, **settings}))


# Least <= stored <= most


FIXED: list[tuple[str, dict[str, Any]]] = [
    ("resnet", {"method": "head-only"}),
    ("resnet", {"method": "norm-only"}),
    ("vit", {"method": "bitfit"}),
    ("vit", {"method": "full"}),
    ("resnet", {"method": "full", "encoding": "bf16"}),
    ("resnet", {"method": "hard-sharing", "own": "30%"}),
    ("vit", {"method": "hard-sharing", "share": "top", "own": "2"}),
    ("resnet", {"method": "lora", "rank": 40}),
    ("vit", {"method": "lora", "rank": 40, "encoding": "bf16"}),
    ("resnet", {"method": "lora", "rank": 40, "encoding": "int8"}),
    ("vit", {"method": "lora", "encoding": "int4"}),
    ("resnet", {"method": "rcm"}),
    ("vit", {"method": "rcm", "norms": "frozen"}),
    ("resnet", {"method": "parallel-adapter"}),
    ("vit", {"method": "piggyback"}),
    ("vit", {"method": "vmt-adapter", "rank": 3}),
    ("vit", {"method": "vmt-adapter", "rank": 3, "seed": 1}),  # the set has its projections by now
    ("vit", {"method": "vmt-adapter-lite", "encoding": "bf16"}),
]
VARYING: list[tuple[str, dict[str, Any]]] = [
    ("resnet", {"method": "taps", **GATED}),
    ("vit", {"method": "taps", "granularity": "block", **GATED}),
    ("vit", {"method": "taps", "encoding": "bf16", **GATED}),
    ("resnet", {"method": "taps", "norms": "gated", "granularity": "block", **GATED, "sparsity": 5.0}),
    ("vit", {"method": "diff-pruning", "keep": 0.001}),
    ("resnet", {"method": "diff-pruning", "keep": 0.6, "epochs": 2}),
    ("vit", {"method": "diff-pruning", "keep": 0.7, "norms": "frozen"}),
]


def name_of(case: Any) -> str:
    return "-".join(map(str, case.values())) if isinstance(case, dict) else str(case)


@pytest.mark.parametrize(("backbone", "settings"), FIXED, ids=name_of)
def test_a_method_of_fixed_size_stores_what_was_said(
    registry_of: RegistryOf, images: Path, backbone: str, settings: dict[str, Any]
) -> None:
    registry = registry_of(backbone)
    said, found = taken(registry, f"fixed-{len(registry.tasks())}", images, **settings)
    assert numbers(said.least) == numbers(found) == numbers(said.most)
    share = (found.params.weights + found.params.norms) / registry.base("base").backbone_params
    assert said.least_share == said.most_share == pytest.approx(share)
    assert (said.method, said.encoding) == (settings["method"], settings.get("encoding", "fp32"))
    assert said.classes == ("dark", "grey", "light")


@pytest.mark.parametrize(("backbone", "settings"), VARYING, ids=name_of)
def test_what_is_stored_is_between_the_least_and_the_most(
    registry_of: RegistryOf, images: Path, backbone: str, settings: dict[str, Any]
) -> None:
    registry = registry_of(backbone)
    said, found = taken(registry, f"varying-{len(registry.tasks())}", images, **settings)
    for least, between, most in zip(numbers(said.least), numbers(found), numbers(said.most), strict=True):
        assert least <= between <= most
    assert said.least.bytes < found.bytes < said.most.bytes, "an end was reached: the test shows little"
    assert said.least_share < said.most_share


@pytest.mark.parametrize(("keep", "encoding"), [(0.7, "bf16"), (1.0, "int4")])
def test_pruned_layers_that_are_stored_whole_take_no_less_than_was_said_in_any_encoding(
    registry_of: RegistryOf, images: Path, keep: float, encoding: str
) -> None:
    settings = {"method": "diff-pruning", "keep": keep, "encoding": encoding}
    said, found = taken(registry_of("vit"), f"whole-{keep}", images, **settings)
    assert said.least.bytes <= found.bytes <= said.most.bytes


@pytest.mark.parametrize("granularity", ["layer", "block"])
@pytest.mark.parametrize(("threshold", "end"), [(9.0, "least"), (-9.0, "most")])
def test_the_ends_are_reached_with_every_gate_closed_and_with_every_gate_open(
    registry_of: RegistryOf, images: Path, granularity: str, threshold: float, end: str
) -> None:
    registry = registry_of("vit" if granularity == "block" else "resnet")
    settings = {"method": "taps", "granularity": granularity, "threshold": threshold}
    said, found = taken(registry, f"{granularity}-{end}", images, **settings)
    assert numbers(found) == numbers(getattr(said, end))
    assert said.least.bytes < said.most.bytes


def test_the_least_of_pruning_is_reached_where_everything_is_kept(registry_of: RegistryOf, images: Path) -> None:
    said, found = taken(registry_of("resnet"), "all-kept", images, method="diff-pruning", keep=1.0)
    assert numbers(found) == numbers(said.least)


# Nothing is written


def everything(registry: Registry) -> tuple[list[str], dict[str, bytes]]:
    """Each row of the catalog, and each file beside it."""
    with closing(sqlite3.connect(registry.home / "catalog.sqlite")) as catalog:
        rows = list(catalog.iterdump())
    paths = [path for path in registry.home.rglob("*") if not path.name.startswith("catalog.sqlite")]
    return rows, {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


METHODS = ("taps", "head-only", "norm-only", "bitfit", "full", "hard-sharing", "lora", "rcm")
METHODS += ("parallel-adapter", "diff-pruning", "piggyback", "vmt-adapter", "vmt-adapter-lite")
STORING = ("taps", "full", "lora", "diff-pruning", "piggyback", "vmt-adapter")  # one for each way to store a task


def test_an_estimate_writes_nothing(tmp_path: Path, images: Path) -> None:
    with Registry.init(tmp_path / "home") as registry:
        registry.add_base("base", "test_vit", random_init=True, input_size=32)
        before = everything(registry)
        for method in METHODS:
            registry.estimate("task", "base", images, method=method, **QUICK)
        assert everything(registry) == before
        registry.add_task("task", "base", images, method="head-only", **QUICK)
        assert everything(registry) != before, "the comparison sees nothing"


# Budgets


@pytest.mark.parametrize("limit", ["max_params", "max_bytes"])
def test_an_estimate_says_what_a_budget_would_refuse_in_the_words_of_add_task(
    registry: Registry, images: Path, limit: str
) -> None:
    settings: dict[str, Any] = {"method": "lora", **QUICK}
    free = registry.estimate("task", "base", images, **settings)
    least = free.least.bytes if limit == "max_bytes" else free.least.params.total
    assert free.refused == ""
    registry.set_budget(**{limit: least})
    assert registry.estimate("task", "base", images, **settings).refused == ""
    registry.set_budget(**{limit: least - 1})
    said = registry.estimate("task", "base", images, **settings)
    assert f"'task' needs at least {least:,}." in said.refused
    assert (said.least, said.most) == (free.least, free.most)
    with pytest.raises(BudgetError) as caught:
        registry.add_task("task", "base", images, **settings)
    assert str(caught.value) == said.refused


@dataclass
class Epochs(Progress):
    """Counts the epochs that were trained."""

    seen: int = 0

    def epoch(self, result: EpochResult) -> None:
        self.seen += 1


@pytest.mark.parametrize("method", STORING)
def test_a_budget_refuses_before_training_what_cannot_fit_and_after_it_what_does_not(
    tmp_path: Path, images: Path, method: str
) -> None:
    """The file's header is known only afterwards: what fits to the last byte before does not fit then."""
    settings: dict[str, Any] = {**QUICK, "method": method}
    with Registry.init(tmp_path / "home") as registry:
        registry.add_base("base", MODELS["vit" if "vmt" in method else "resnet"], random_init=True, input_size=32)
        least = registry.estimate("task", "base", images, **settings).least.bytes
        registry.set_budget(base="base", max_bytes=least - 1)
        progress, objects = Epochs(), sorted((registry.home / "objects").rglob("*"))
        with pytest.raises(BudgetError, match=f"'task' needs at least {least:,}\\.") as caught:
            registry.add_task("task", "base", images, progress=progress, **settings)
        assert (progress.seen, registry.tasks(), registry.runs(), caught.value.exit_code) == (0, (), (), 8)

        registry.set_budget(base="base", max_bytes=least)
        with pytest.raises(BudgetError, match=r"'task' needs [0-9,]+\. .* add-task task --resume") as caught:
            registry.add_task("task", "base", images, progress=progress, **settings)
        assert (progress.seen, registry.runs()[0].state) == (1, "over-budget")
        assert sorted((registry.home / "objects").rglob("*")) == objects
        needed = re.findall(r"--max-bytes (\d+)", str(caught.value))
        registry.set_budget(base="base", max_bytes=int(needed[0]))
        assert registry.resume_task("task", progress=progress).state == "ready"
        assert progress.seen == 1
        assert registry.budgets()[0].used_bytes == int(needed[0])


# Errors are those of add_task


WRONG: dict[str, dict[str, Any]] = {
    "a name that cannot be": {"name": "no/name"},
    "a name that is taken": {"name": "taken"},
    "a name in training": {"name": "waiting"},
    "a base that is not there": {"base": "bass"},
    "no images": {"data": "/nowhere"},
    "a method that is not there": {"method": "lore"},
    "an encoding that only a method has": {"encoding": "low-rank"},
    "a tracker that is not there": {"tracker": "nobody"},
    "an option that means nothing": {"method": "full", "rank": 3},
    "a value that makes no sense": {"method": "diff-pruning", "keep": 7.0},
    "norms with gates where there are none": {"method": "rcm", "norms": "gated"},
    "a method that does not suit the base": {"method": "vmt-adapter", "base": "resnet"},
    "a set of another rank": {"method": "vmt-adapter", "rank": 9, "set": "theirs"},
    "a set whose first task is in training": {"method": "vmt-adapter", "set": "begun"},
    "a device that is not there": {"device": "cuda:99"},
}


class Stops(Progress):
    def epoch(self, result: EpochResult) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Registry]:
    """A registry with a finished task, one in training, a set of tasks, and one whose first task is in training."""
    with Registry.init(tmp_path_factory.mktemp("furnished") / "home") as registry:
        registry.add_base("base", "test_vit", random_init=True, input_size=32)
        registry.add_base("resnet", "test_resnet", random_init=True, input_size=32)
        registry.add_task("taken", "base", images, method="head-only", **QUICK)
        registry.add_task("member", "base", images, method="vmt-adapter", set="theirs", **QUICK)
        for name, settings in (
            ("waiting", {"method": "head-only"}),
            ("beginner", {"method": "vmt-adapter", "set": "begun"}),
        ):
            with pytest.raises(Interrupted):
                registry.add_task(name, "base", images, progress=Stops(), **{**QUICK, **settings})
        yield registry


@pytest.mark.parametrize("what", WRONG)
def test_an_estimate_is_refused_as_the_task_would_be_for(furnished: Registry, images: Path, what: str) -> None:
    told = {"name": "task", "base": "base", "data": images, "method": "head-only", **QUICK, **WRONG[what]}
    errors = []
    before = everything(furnished)
    for verb in (furnished.estimate, furnished.add_task):
        with pytest.raises(TapsError) as caught:
            verb(**told)
        errors.append((type(caught.value), str(caught.value), caught.value.exit_code))
    assert errors[0] == errors[1]
    assert everything(furnished) == before


# The command line


@pytest.fixture
def dry_run(
    furnished: Registry, images: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``add-task cars --dry-run`` and gives the exit code, the output and the errors."""

    def run(*options: str) -> tuple[int, str, str]:
        told = ("--base", "base", "--data", str(images), *options, "--workers", "0", "--tracker", "none", "--dry-run")
        code = _run(["--home", str(furnished.home), "add-task", "cars", *told], Session())
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_dry_run_prints_the_least_and_the_most(dry_run: Callable[..., Any], furnished: Registry) -> None:
    """Of test_vit, all but the norms, the class token and the positions: ``64 * 769`` for the patches and, for each of
    6 blocks, ``4 * 64 * 65`` for attention and ``2 * 64 * 192 + 256`` for the MLP."""
    before = everything(furnished)
    code, out, err = dry_run("--method", "taps", "--granularity", "block")
    lines = [" ".join(line.split()) for line in out.splitlines() if line.startswith(" at ")]
    assert code == 0
    assert lines == ["at least 0 1.7 k 195 7.4 kB 0.6 %", "at most 298.0 k 1.7 k 195 1.2 MB 99.9 %"]
    assert "Nothing was trained. 3 classes" in err
    assert everything(furnished) == before


def test_a_dry_run_within_a_budget_says_what_that_allows(dry_run: Callable[..., Any], furnished: Registry) -> None:
    code, out, err = dry_run("--budget", "10%,2MB,20k")
    backbone = furnished.base("base").backbone_params
    assert code == 0
    assert "at least" in out
    assert "at most" not in out
    allowed = [line for line in err.splitlines() if line.startswith("--budget")]
    assert allowed[0] == f"--budget 10% allows at most {int(0.1 * 4 * backbone):,} bytes of weights and norms."
    assert re.fullmatch(r"--budget 2MB allows at most 1,9\d\d,\d\d\d bytes\.", allowed[1]), "the header takes a little"
    assert allowed[2] == "--budget 20k allows at most 20,000 parameters."


def test_a_dry_run_as_json_is_the_estimate(dry_run: Callable[..., Any], furnished: Registry, images: Path) -> None:
    code, out, _ = dry_run("--method", "diff-pruning", "--keep", "1%", "--format", "json")
    found = json.loads(out)
    said = furnished.estimate("cars", "base", images, method="diff-pruning", keep=0.01, **QUICK)
    assert code == 0
    assert {name: found[name] for name in ("task", "base", "method", "encoding", "refused")} == {
        "task": "cars",
        "base": "base",
        "method": "diff-pruning",
        "encoding": "fp32",
        "refused": "",
    }
    for end, size, share in (("least", said.least, said.least_share), ("most", said.most, said.most_share)):
        params = found[end]["params"]
        assert (params["weights"], params["norms"], params["head"]) == numbers(size)[:3]
        assert params["total"] == size.params.total
        assert found[end]["bytes"] == size.bytes
        assert found[f"{end}_share"] == share
    assert found["classes"] == ["dark", "grey", "light"]


def test_a_dry_run_says_what_the_budget_would_refuse_and_still_says_the_cost(
    dry_run: Callable[..., Any], furnished: Registry
) -> None:
    furnished.set_budget(max_params=1)
    try:
        code, out, err = dry_run("--method", "head-only")
    finally:
        furnished.clear_budget()
    assert code == 0
    assert "at least" in out
    assert "The budget of the registry is exceeded by " in err
    assert "and 'cars' needs at least 195. " in err


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--method", "full", "--rank", "3"), 2, "--method full does not accept --rank"),
        (("--method", "diff-pruning", "--keep", "0"), 2, "--keep must be greater than 0 and at most 1"),
        (("--method", "diff-pruning", "--keep", "130%"), 2, "--keep"),
        (("--method", "hard-sharing", "--own", "half"), 2, "--own must be a number of stages"),
        (("--method", "hard-sharing", "--share", "middle"), 2, "--share"),
        (("--method", "lora", "--rank", "0"), 2, "--rank"),
        (("--method", "lora", "--norms", "gated"), 2, "--method lora: --norms must be one of task, frozen"),
        (("--method", "nothing"), 12, "no method 'nothing'"),
        (("--resume",), 2, "--dry-run is for a new task"),
    ],
)
def test_a_dry_run_is_refused_with_a_text_and_an_exit_code(
    dry_run: Callable[..., Any], options: tuple[str, ...], code: int, text: str
) -> None:
    found, out, err = dry_run(*options)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
