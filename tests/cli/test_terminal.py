"""What commands print: no order reaches a terminal that a name holds, and no encoding is too small."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taps_registry import Registry
from taps_registry.cli.demo.story import Story
from taps_registry.cli.terminal import printable, printable_line

QUICK = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8, "method": "head-only"}
EVIL = "cat\x1b]0;PWNED\x07\x1b[2J\u202etxt"
ORDERS = (b"\x1b]0;", b"\x1b[2J", b"\x07", "\u202e".encode())
PROGRAM = (sys.executable, "-c", "from taps_registry.cli.main import run; run()")


@given(st.text())
def test_what_is_printed_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown.replace("\n", "")} & {"Cc", "Cs"}
    assert "\n" not in printable_line(text)
    shown.encode()


def test_what_can_be_shown_is_left_alone() -> None:
    assert printable("café, 猫\n🐈‍⬛ one\u00a0two") == "café, 猫\n🐈‍⬛ one\u00a0two"
    assert printable("a\x1b[2Jb") == r"a\x1b[2Jb"
    assert printable(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A registry with a task whose classes have names that are orders to a terminal."""
    folder = tmp_path_factory.mktemp("orders")
    data = folder / f"data{EVIL}"
    for number, source in enumerate(sorted(images.iterdir())[:2]):
        (data / f"{number}{EVIL}").mkdir(parents=True)
        for file in source.iterdir():
            (data / f"{number}{EVIL}" / f"{file.stem}{EVIL}.png").write_bytes(file.read_bytes())
    (data / "notes.txt").touch()
    with Registry.init(folder / "home") as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_task("t", "base", data, **QUICK)
    return folder


def on_a_terminal(*words: str) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*PROGRAM, *words], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    written = b""
    try:
        while some := os.read(ours, 65536):
            written += some
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    process.wait()
    return written


COMMANDS = (
    "predict t {image} --top 2",
    "predict t {image}x",
    "show t",
    "evaluate t --data {data}",
    "evaluate t --data {data} --split all",
    "evaluate t --data {data}/none",
    "add-task u --base base --data {data} --dry-run --method head-only",
    "add-task u --base base --data {data} --epochs 1 --workers 0 --tracker none --method head-only",
    "export t {data}/x.bin",
    "evil{data}",
    "predict t --evil{data}",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_order_in_a_name_reaches_the_terminal(home: Path, command: str) -> None:
    data = home / f"data{EVIL}"
    values = {"data": data, "image": data / f"0{EVIL}" / f"0{EVIL}.png"}
    written = on_a_terminal("--home", str(home / "home"), *(word.format(**values) for word in command.split()))
    assert rb"\x1b]0;PWNED" in written, written
    assert not [order for order in ORDERS if order in written]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("form", ["table", "json"])
def test_no_encoding_is_too_small(registry: Registry, images: Path, tmp_path: Path, encoding: str, form: str) -> None:
    data = tmp_path / "猫"
    for name in ("dark", "light"):
        data.mkdir(exist_ok=True)
        (data / f"{name}é猫").symlink_to(images / name)
    registry.add_task("t", "base", data, **QUICK)
    words = ["predict", "t", str(data / "darké猫" / "0.png"), "--format", form]
    done = subprocess.run(
        [*PROGRAM, "--home", str(registry.home), *words],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        capture_output=True,
        check=True,
    )
    shown = done.stdout.decode(encoding)
    if form == "json":
        assert json.loads(shown)["predictions"][0]["image"] == words[2]
    else:
        assert r"\u732b" in shown


def test_the_demo_shows_the_name_of_its_folder_without_orders(capsys: pytest.CaptureFixture[str]) -> None:
    Story("demo\x1b[2J", ())._command("init")
    assert capsys.readouterr().out == "\n$ taps-registry --home 'demo\\x1b[2J/.taps' init\n"
