"""The command line: what it prints where, what it exits with, and how it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import click
import pytest
from click.testing import CliRunner

from taps_registry import Registry
from taps_registry.cli.main import COMMANDS, _run, main
from taps_registry.cli.session import Session

PROGRAM = Path(sys.executable).parent / "taps-registry"
LONG_BASE = "base-" + "b" * 95  # as long as names may be
LONG_TASK = "task-" + "t" * 95
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
QUICK_OPTIONS = ("--epochs", "1", "--augment", "none", "--tracker", "none", "--workers", "0", "--batch-size", "8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A registry that no test changes: two bases, three tasks, a budget."""
    folder = tmp_path_factory.mktemp("cli") / "home"
    with Registry.init(folder) as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_base(LONG_BASE, "test_resnet", random_init=True, input_size=32, seed=1)
        made.add_task("cars", "base", images, **QUICK)
        made.add_task("birds", "base", images, method="head-only", **QUICK)
        made.add_task(LONG_TASK, LONG_BASE, images, method="head-only", **QUICK)
        made.set_budget(base="base", max_bytes=10**9)
    return folder


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(home, tmp_path / "copy"))


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs the program in this process and captures what reaches the file descriptors."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = _run([str(argument) for argument in arguments], Session())
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the program as a shell would."""
    return subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def one_document(text: str) -> Any:
    """The JSON document that ``text`` is; nothing may come before or after it but its line's end."""
    found, end = json.JSONDecoder().raw_decode(text)
    assert text[end:] == "\n"
    return found


# Help


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        subs = command.commands if isinstance(command, click.Group) else ()
        found += [(name,), *((name, sub) for sub in subs)]
    return found


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"], obj=Session())
    assert result.exit_code == 0
    example = result.stdout.partition("Example")[2]
    assert f"taps-registry {' '.join(words)}" in example or f" {words[0]}\n" in example
    assert "Options:" in result.stdout


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_option_and_every_command_says_what_it_does(words: tuple[str, ...]) -> None:
    command: Any = main.get_command(click.Context(main), words[0])
    if len(words) == 2:
        command = command.commands[words[1]]
    assert command.help
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert undocumented in ([], ["port"])


def test_the_help_of_the_program_lists_every_command() -> None:
    done = shell("--help")
    assert done.returncode == 0
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed == set(COMMANDS)


def test_the_version_is_that_of_the_package() -> None:
    from taps_registry import __version__

    assert shell("--version").stdout == f"taps-registry {__version__}\n"


# JSON


JSON_COMMANDS = {
    "bases": {"bases"},
    "tasks": {"tasks"},
    "tasks --base base": {"tasks"},
    "show cars": {"task"},
    "show base": {"base"},
    "cost": {"bases", "budget"},
    "cost cars --by layer": {"bases", "budget"},
    "cost --by kind": {"bases", "budget"},
    "budget show": {"budgets"},
    "budget set --max-params 100M": {"budgets"},
    "evaluate cars --data {images}": {
        *("task", "version", "split", "images", "accuracy", "balanced_accuracy", "macro_f1", "loss", "classes", "notes")
    },
    "predict cars {image} {image} --top 2": {"task", "predictions"},
    "gc --dry-run": {"removed", "bytes", "dry_run"},
    "gc": {"removed", "bytes", "dry_run"},
    "verify": {"problems"},
    "verify --deep": {"problems"},
    "runs": {"runs"},
    "runs cars": {"runs"},
    "plugins": {"plugins"},
    "add-base new --model test_resnet --random-init --input-size 32": {"name", "model", "digest", "layers", "bytes"},
    "add-task new --base base --data {images} --workers 0 --epochs 1 --tracker csv": {"name", "state", "metrics"},
}


@pytest.mark.parametrize(("line", "keys"), JSON_COMMANDS.items())
def test_json_is_one_document_on_standard_output_and_nothing_else(
    cli: Cli, copied: Path, images: Path, line: str, keys: set[str]
) -> None:
    words = line.format(images=images, image=images / "dark" / "0.png").split()
    result = cli("--home", copied, *words, "--format", "json")
    assert result.code == 0, result.err
    assert keys <= one_document(result.out).keys()


def test_the_keys_of_cost_are_those_that_are_documented(cli: Cli, home: Path) -> None:
    document = one_document(cli("--home", home, "cost", "--format", "json").out)
    cost = next(found for found in document["bases"] if found["base"] == "base")
    assert {"base", "params", "bytes", "tasks", "total"} <= cost.keys()
    assert cost["total"].keys() == {"params", "bytes", "multiple", "multiple_of_bytes", "multiple_if_copied"}
    assert [task["task"] for task in cost["tasks"]] == ["birds", "cars"]
    for task in cost["tasks"]:
        assert task.keys() == {
            "task",
            "set",
            "version",
            "method",
            "open_layers",
            "layers",
            "params",
            "bytes",
            "share_of_base",
            "share_of_bytes",
            "metrics",
        }
        assert task["params"].keys() == {"weights", "norms", "head", "total"}
        parts = task["params"]
        assert parts["total"] == parts["weights"] + parts["norms"] + parts["head"]
        assert {"test/accuracy", "val/accuracy"} <= task["metrics"].keys()
    assert cost["total"]["multiple"] == pytest.approx(1 + sum(task["share_of_base"] for task in cost["tasks"]))
    assert cost["total"]["multiple_if_copied"] == 3
    assert cost["total"]["params"] == cost["params"] + sum(task["params"]["total"] for task in cost["tasks"])


def test_cost_in_json_says_what_the_bytes_on_the_disk_are(cli: Cli, home: Path) -> None:
    document = one_document(cli("--home", home, "cost", "--format", "json").out)
    counted = sum(found["total"]["bytes"] for found in document["bases"])
    assert counted == sum(path.stat().st_size for path in (home / "objects").rglob("*.safetensors"))


def test_predictions_in_json_name_the_image_and_its_classes_best_first(cli: Cli, home: Path, images: Path) -> None:
    image = images / "light" / "3.png"
    result = cli("--home", home, "predict", "cars", image, "--top", "9", "--format", "json")
    (found,) = one_document(result.out)["predictions"]
    assert found["image"] == str(image)
    shares = [share for _, share in found["classes"]]
    assert sorted(name for name, _ in found["classes"]) == ["dark", "grey", "light"]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_json_of_a_real_process_is_alone_on_standard_output(copied: Path, images: Path) -> None:
    """In a process of its own with MLflow, the most talkative of all."""
    done = shell(
        *("--home", copied, "add-task", "new", "--base", "base", "--data", images, "--format", "json"),
        *("--epochs", "1", "--workers", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert one_document(done.stdout)["state"] == "ready"
    assert "epoch 1/1" in done.stderr
    assert "Warning" not in done.stderr
    assert "Note" not in done.stderr


# Tables


def test_results_are_on_standard_output_and_messages_on_standard_error(cli: Cli, copied: Path, images: Path) -> None:
    added = cli("--home", copied, "add-task", "new", "--base", "base", "--data", images, *QUICK_OPTIONS)
    assert added.code == 0
    assert added.out == ""
    assert "Added new, version 1: " in added.err
    removed = cli("--home", copied, "remove", "new")
    assert removed.out == ""
    assert "Removed new." in removed.err
    listed = cli("--home", copied, "tasks")
    assert "cars" in listed.out
    assert listed.err == ""


@pytest.mark.parametrize("command", ["cost", "tasks", "bases", "runs"])
def test_a_table_does_not_cut_names_in_a_pipe(home: Path, command: str) -> None:
    """However narrow the terminal says it is, and however long the names are."""
    done = shell("--home", home, command, env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0
    assert LONG_BASE in done.stdout
    assert command == "bases" or LONG_TASK in done.stdout
    assert "…" not in done.stdout


def test_show_does_not_cut_names_of_classes_in_a_pipe(cli: Cli, tmp_path: Path, copied: Path, images: Path) -> None:
    classes = [f"a-class-with-quite-a-long-name-{number}" for number in range(12)]
    for number, name in enumerate(classes):
        shutil.copytree(images / ("dark", "grey", "light")[number % 3], tmp_path / "many" / name)
    with Registry.open(copied) as registry:
        registry.add_task("many", "base", tmp_path / "many", method="head-only", **QUICK)
    shown = cli("--home", copied, "show", "many").out
    assert [name for name in classes if name not in shown] == []


def test_the_cost_table_adds_up_to_what_json_says(cli: Cli, home: Path) -> None:
    table = cli("--home", home, "cost", "--base", "base").out
    document = one_document(cli("--home", home, "cost", "--base", "base", "--format", "json").out)
    (cost,) = document["bases"]
    assert f"base with 2 tasks: {cost['total']['multiple']:.2f} times the base's parameters" in table
    assert "a full copy per task: 3.00 times" in table
    assert "Budget of base: " in table
    assert LONG_BASE not in table


def test_the_cost_of_an_empty_registry_says_what_to_type(cli: Cli, tmp_path: Path) -> None:
    cli("--home", tmp_path / "home", "init")
    result = cli("--home", tmp_path / "home", "cost")
    assert result.code == 0
    assert "add-base --help" in result.err


# Errors


def is_one_line(result: Result) -> bool:
    """But for a line that says what was done before the error."""
    lines = [line for line in result.err.splitlines() if not line.startswith("Checking ")]
    return len(lines) == 1 and lines[0].startswith("Error: ") and result.out == ""


ERRORS = {
    "tasks --base nonsense": (5, "There is no base 'nonsense'."),
    "tasks --base bas": (5, "Did you mean 'base'?"),
    "show nonsense": (5, "There is no task or base 'nonsense'."),
    "show bas": (5, "There is no task or base 'bas'. Did you mean 'base'?"),
    f"cost birds --base {LONG_BASE}": (2, f"The task 'birds' is on the base 'base', not on '{LONG_BASE}'"),
    "cost nonsense": (5, "There is no task 'nonsense'."),
    "remove nonsense": (5, "There is no task 'nonsense'."),
    "budget set --base nonsense --max-bytes 1GB": (5, "There is no base 'nonsense'."),
    "budget clear --base nonsense": (5, "There is no base 'nonsense'."),
    "runs nonsense": (5, "There is no task 'nonsense'."),
    "add-base base --model test_resnet --random-init": (6, "'base'"),
    "add-task cars --base base --data {images}": (6, "A task named 'cars' already exists."),
    "add-task cars --resume": (5, "nothing to resume"),
    "add-base new --model resnet5O --random-init": (11, "Similar names: "),
    "add-base new --model test_resnet --weights none.pth": (11, "There is no file none.pth."),
    "add-base new --model test_resnet": (2, "one of --weights FILE, --pretrained, --random-init"),
    "add-base new/name --model test_resnet --random-init": (2, "'new/name' is not a valid base name"),
    "add-base new --model test_resnet --random-init --model-arg x": (2, "--model-arg takes key=value"),
    "add-base new --model test_resnet --random-init --plugin nonsense": (12, "There is no architecture 'nonsense'."),
    "add-base new --model test_resnet --random-init --seed 4294967296": (2, "--seed must be at least 0 and less than"),
    "add-base new --model test_vit --random-init --input-size 8": (2, "does not take images of 8x8 pixels"),
    "add-task new --base base --data {images} --method head-only --threshold 0.5": (2, "does not accept --threshold"),
    "add-task new --base base --data {images} --budget 5%,": (2, "--budget '5%,' is not a valid budget."),
    "add-task new --base base --data {images} --seed -1": (2, "--seed must be at least 0 and less than 4294967296"),
    "add-task new --base base --data {images} --lr nan": (2, "--lr must be a finite number of at least 0"),
    "add-task new --base base --data {images} --threshold nan --epochs 1": (2, "--threshold"),
    "add-task new --base base --data {images} --device nonsense": (2, "--device nonsense"),
    "add-task new --base base --data {images} --method nonsense": (12, "There is no method 'nonsense'."),
    "add-task new --base base --data nowhere": (7, "There is no folder nowhere."),
    "add-task new --base base --data {images}/dark": (7, "has no class folders"),
    "add-task new --base nonsense --data {images}": (5, "There is no base 'nonsense'."),
    "predict cars none.png": (7, "none.png: No such file or directory"),
    "predict nonsense none.png": (5, "There is no task 'nonsense'."),
    "evaluate cars --data nowhere": (7, "There is no folder nowhere."),
    "evaluate cars --data {images} --device nonsense": (2, "--device nonsense"),
    "export cars weights.pth": (2, "must end in .safetensors"),
    "budget set --max-bytes -1": (2, "at least 0 and at most"),
    "budget set": (2, "A budget needs --max-bytes or --max-params"),
    "ui": (5, "no MLflow runs yet"),
}


@pytest.mark.parametrize(("line", "expected"), ERRORS.items())
def test_an_error_is_one_line_and_the_exit_code_of_its_class(
    cli: Cli, copied: Path, images: Path, line: str, expected: tuple[int, str]
) -> None:
    result = cli("--home", copied, *line.format(images=images).split())
    assert result.code == expected[0], result.err
    assert is_one_line(result), result.err
    assert expected[1] in result.err


USAGE_ERRORS = {
    "tsks": "Error: There is no command 'tsks'. Did you mean 'tasks'?",
    "frobnicate": "Error: There is no command 'frobnicate'. `taps-registry --help` lists the commands.",
    "tasks --nonsense": "Error: No such option",
    "cost --by nonsense": "Error: Invalid value for '--by'",
    "add-task new": "Error: A new task needs --base and --data; an interrupted one needs --resume.",
    "add-task new --base base --data images --budget=": "Error: --budget is empty.",
    "add-task cars --resume --base other": "Error: The run to resume is on the base 'base', not on 'other'.",
    "add-task new --base base --data . --epochs 0": "Error: Invalid value for '--epochs'",
    "budget set --max-bytes many": "Error: Invalid value for '--max-bytes': 'many' is not a valid amount; example: 2GB",
    "predict cars": "Error: Missing argument 'IMAGE...'.",
}


@pytest.mark.parametrize(("line", "message"), USAGE_ERRORS.items())
def test_a_wrong_command_line_exits_with_2_and_says_why_on_its_last_line(
    cli: Cli, home: Path, line: str, message: str
) -> None:
    result = cli("--home", home, *line.split())
    assert result.code == 2
    assert result.out == ""
    assert result.err.splitlines()[-1].startswith(message)


def test_no_registry_is_an_error_that_says_how_to_make_one(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("tasks")
    assert result.code == 3
    assert is_one_line(result)
    assert "taps-registry init" in result.err
    named = cli("--home", tmp_path / "nowhere", "tasks")
    assert named.code == 3
    assert f"There is no registry at {tmp_path / 'nowhere'}." in named.err


def test_a_budget_that_does_not_allow_a_task_exits_with_8_before_any_training(
    cli: Cli, copied: Path, images: Path
) -> None:
    assert cli("--home", copied, "budget", "set", "--base", "base", "--max-bytes", "1kB").code == 0
    result = cli("--home", copied, "add-task", "new", "--base", "base", "--data", images, *QUICK_OPTIONS)
    assert result.code == 8
    assert result.err.splitlines()[-1].startswith("Error: The budget of the base 'base' is exceeded by ")
    assert "epoch" not in result.err
    assert one_document(cli("--home", copied, "tasks", "--format", "json").out)["tasks"][-1]["name"] != "new"


@pytest.mark.parametrize("form", ["table", "json"])
def test_verify_exits_with_9_and_names_what_is_missing(cli: Cli, copied: Path, form: str) -> None:
    with Registry.open(copied) as registry:
        digest = registry.task("cars").digest
    next((copied / "objects" / digest[:2]).glob(f"{digest[2:]}*")).unlink()
    result = cli("--home", copied, "verify", "--format", form)
    assert result.code == 9
    assert digest in result.out
    if form == "json":
        assert one_document(result.out)["problems"][0]["subject"] == f"object {digest}"
    else:
        assert "2 problems." in result.err
    assert cli("--home", copied, "predict", "cars", "x.png").code == 9


def test_verify_counts_one_problem_as_one(cli: Cli, copied: Path) -> None:
    with closing(sqlite3.connect(copied / "catalog.sqlite")) as catalog, catalog:
        catalog.execute("INSERT INTO taps_objects VALUES (?, '', 1, 'artifact', '2026-01-01')", ["0" * 64])
    result = cli("--home", copied, "verify")
    assert (result.code, result.err.strip()) == (9, "1 problem.")


def test_unreadable_images_are_listed_below_the_error(cli: Cli, home: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for name in ("0.png", "1.png"):
        (tmp_path / "images" / "dark" / name).write_text("not an image")
    result = cli("--home", home, "add-task", "new", "--base", "base", "--data", tmp_path / "images")
    assert result.code == 7
    assert "Error: 2 of 36 images cannot be read:\n  dark/0.png: not an image" in result.err
    assert "\n  dark/1.png: not an image" in result.err


def test_verbose_shows_the_traceback_and_keeps_the_exit_code(home: Path) -> None:
    quiet = shell("--home", home, "tasks", "--base", "nonsense")
    loud = shell("--home", home, "tasks", "--base", "nonsense", "--verbose")
    assert "Traceback" not in quiet.stderr
    assert "Traceback (most recent call last):" in loud.stderr
    assert "NotFoundError: There is no base 'nonsense'." in loud.stderr
    assert (quiet.returncode, loud.returncode) == (5, 5)


# Where the registry is


def marked(folder: Path, mark: int) -> Path:
    """A registry that can be told from others by its budget."""
    with Registry.init(folder) as made:
        made.set_budget(max_bytes=mark)
    return folder


def which(result: Result) -> int:
    assert result.code == 0, result.err
    limit: int = one_document(result.out)["budgets"][0]["max_bytes"]
    return limit


def test_home_comes_from_the_option_then_the_environment_then_the_nearest_folder_upwards(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, environment = marked(tmp_path / "option", 1), marked(tmp_path / "environment", 2)
    marked(tmp_path / ".taps", 3)
    marked(tmp_path / "inner" / ".taps", 4)
    show = ("budget", "show", "--format", "json")
    (tmp_path / "inner" / "deep" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "inner" / "deep" / "deeper")
    assert which(cli(*show)) == 4
    monkeypatch.chdir(tmp_path / "option")
    assert which(cli(*show)) == 3
    monkeypatch.setenv("TAPS_REGISTRY_HOME", str(environment))
    assert which(cli(*show)) == 2
    assert which(cli("--home", option, *show)) == 1
    monkeypatch.setenv("TAPS_REGISTRY_HOME", "")
    assert which(cli(*show)) == 3


def test_init_makes_a_folder_here_or_where_it_is_told(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init").code == 0
    assert (tmp_path / ".taps" / "registry.json").exists()
    monkeypatch.setenv("TAPS_REGISTRY_HOME", str(tmp_path / "named"))
    result = cli("init")
    assert f"The registry is at {tmp_path / 'named'}." in result.err
    assert cli("init").code == 0
    assert cli("upgrade").code == 0


@pytest.mark.parametrize(
    "line",
    ["--home {home} tasks --format json", "tasks --home {home} --format json", "tasks --format json --home {home}"],
)
def test_home_is_understood_before_and_after_the_command(cli: Cli, home: Path, line: str) -> None:
    result = cli(*line.format(home=home).split())
    assert len(one_document(result.out)["tasks"]) == 3


@pytest.mark.parametrize("words", [("--home", "{home}", "budget", "show"), ("budget", "show", "--home", "{home}")])
def test_home_is_understood_around_a_command_of_two_words(cli: Cli, home: Path, words: tuple[str, ...]) -> None:
    assert "base" in cli(*(word.format(home=home) for word in words)).out


@pytest.mark.parametrize("before", [True, False])
def test_the_database_is_understood_before_and_after_the_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    home, database = tmp_path / "home", ("--database", f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    for command in ("init", "tasks"):
        words = (*database, command) if before else (command, *database)
        assert cli("--home", home, *words).code == 0
    assert (tmp_path / "elsewhere.sqlite").exists()
    assert not (home / "catalog.sqlite").exists()
    without = cli("--home", home, "tasks")
    assert without.code == 4
    assert is_one_line(without)
    monkeypatch.setenv("TAPS_DATABASE_URL", database[1])
    assert cli("--home", home, "tasks").code == 0


@pytest.mark.parametrize("before", [True, False])
def test_verbose_is_understood_before_and_after_the_command(cli: Cli, home: Path, before: bool) -> None:
    words = ("tasks", "--base", "nonsense")
    result = shell("--home", home, *(("--verbose", *words) if before else (*words, "--verbose")))
    assert "Traceback" in result.stderr


# Amounts


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("bytes", "0", 0),
        ("bytes", "500", 500),
        ("bytes", "500B", 500),
        ("bytes", "2GB", 2_000_000_000),
        ("bytes", "2 gb", 2_000_000_000),
        ("bytes", "2G", 2_000_000_000),
        ("bytes", "1.5MiB", 1_572_864),
        ("bytes", "1KiB", 1024),
        ("bytes", "1kB", 1000),
        ("bytes", "3T", 3 * 10**12),
        ("bytes", "1_000_000", 1_000_000),
        ("params", "10M", 10_000_000),
        ("params", "2.5k", 2500),
        ("params", "1Gi", 1 << 30),
    ],
)
def test_amounts_have_units(cli: Cli, tmp_path: Path, option: str, text: str, value: int) -> None:
    home = tmp_path / "home"
    cli("--home", home, "init")
    result = cli("--home", home, "budget", "set", f"--max-{option}", text, "--format", "json")
    assert result.code == 0, result.err
    assert one_document(result.out)["budgets"][0][f"max_{option}"] == value


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("bytes", "many"),
        ("bytes", ""),
        ("bytes", "GB"),
        ("bytes", "2XB"),
        ("bytes", "2GBB"),
        ("bytes", "1,5GB"),
        ("bytes", "nan"),
        ("bytes", "inf"),
        ("bytes", "1e999"),
        ("bytes", "-2GB"),
        ("bytes", "99999999TB"),
        ("params", "10MB"),
        ("params", "99999999T"),
    ],
)
def test_nonsense_is_no_amount(cli: Cli, home: Path, option: str, text: str) -> None:
    """Neither is one that no database can hold: it must not end in a traceback."""
    result = cli("--home", home, "budget", "set", f"--max-{option}={text}")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith("Error: ")


# Pipes and signals


@pytest.mark.parametrize("words", [("cost",), ("show", "base", "--format", "json"), ("--help",)])
def test_a_reader_that_goes_away_early_is_no_error(home: Path, words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [str(PROGRAM), "--home", str(home), *words], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


def wait_for_epoch(stream: IO[str]) -> list[str]:
    """Read lines up to the first that tells of an epoch."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if line.startswith("epoch "):
            return lines
    pytest.fail(f"It ended too early: {''.join(lines)}")


def stopped_by(number: int, *arguments: object) -> tuple[int, list[str], str]:
    """Starts the program, sends it the signal after an epoch. Returns its exit code and what it said before and after.

    The signal has its default action here while the process starts: one that is ignored would be in the child too.
    """
    before = signal.signal(number, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [str(PROGRAM), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(number, before)
    with process:
        try:
            assert process.stderr is not None
            first = wait_for_epoch(process.stderr)
            process.send_signal(number)
            rest = process.stderr.read()
            return process.wait(timeout=60), first, rest
        finally:
            process.kill()


def last_epoch(lines: list[str]) -> int:
    """The number of the last epoch that the lines tell of."""
    return int([line for line in lines if line.startswith("epoch ")][-1].split()[1].partition("/")[0])


def test_a_run_that_is_stopped_by_a_signal_can_be_resumed_until_it_is_done(
    cli: Cli, copied: Path, images: Path
) -> None:
    """Ctrl-C first, then what `kill` and service managers send; and the third run finishes.

    A signal may come between an epoch's checkpoint and the line that tells of it, so the next may be one further.
    """
    epochs = 300
    code, first, rest = stopped_by(
        signal.SIGINT,
        *("--home", copied, "add-task", "long", "--base", "base", "--data", images),
        *("--augment", "none", "--tracker", "none", "--workers", 0, "--batch-size", 8, "--epochs", epochs),
    )
    assert first[-1].startswith(f"epoch 1/{epochs}  loss ")
    assert code == 130, rest
    assert rest.splitlines()[-1] == (
        "Stopped. The run of 'long' is kept; continue it with: taps-registry add-task long --resume"
    )
    assert "Traceback" not in rest
    reached = last_epoch([*first, *rest.splitlines()])

    (run,) = one_document(cli("--home", copied, "runs", "long", "--format", "json").out)["runs"]
    assert (run["state"], run["epochs"]) == ("interrupted", epochs)
    assert reached - 1 <= run["epoch"] <= reached + 1
    taken = cli("--home", copied, "add-task", "long", "--base", "base", "--data", images)
    assert taken.code == 6
    assert "taps-registry add-task long --resume" in taken.err
    assert cli("--home", copied, "predict", "long", "x.png").code == 5

    code, first, rest = stopped_by(signal.SIGTERM, "--home", copied, "add-task", "long", "--resume")
    assert reached < last_epoch(first) <= reached + 2
    assert code == 130, rest
    assert rest.splitlines()[-1].endswith("taps-registry add-task long --resume")
    reached = last_epoch([*first, *rest.splitlines()])

    last = reached + 3
    done = cli("--home", copied, "add-task", "long", "--resume", "--epochs", last, "--format", "json")
    assert done.code == 0, done.err
    assert f"epoch {last}/{last}" in done.err
    assert f"epoch {reached}/" not in done.err
    assert one_document(done.out)["state"] == "ready"
    assert cli("--home", copied, "verify", "--deep").code == 0


def test_ctrl_c_before_any_training_exits_with_130_and_leaves_the_name_free(
    cli: Cli, copied: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("taps_registry.registry.training.preparing.open_data", interrupted)
    result = cli("--home", copied, "add-task", "new", "--base", "base", "--data", images)
    assert result.code == 130
    assert result.err.strip() in ("", "Stopped.", "Aborted!")
    monkeypatch.undo()
    assert cli("--home", copied, "add-task", "new", "--base", "base", "--data", images, *QUICK_OPTIONS).code == 0
