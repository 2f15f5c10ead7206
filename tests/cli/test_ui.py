"""`ui` starts MLflow's own pages on the registry's runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from taps_registry import Registry
from taps_registry.registry.records import Task

PROGRAM = Path(sys.executable).with_name("taps-registry")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(url: str, seconds: float) -> str:
    """The page at ``url``, as soon as somebody serves it."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_ui_serves_the_runs_of_the_registry_until_ctrl_c(registry: Registry, add: Callable[..., Task]) -> None:
    add("task", tracker="mlflow")
    port = free_port()
    command = [str(PROGRAM), "--home", str(registry.home), "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert "<title>MLflow</title>" in answer(f"http://127.0.0.1:{port}/", seconds=120)
        search = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
            data=json.dumps({"max_results": 10}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(search, timeout=30) as response:
            names = [experiment["name"] for experiment in json.load(response)["experiments"]]
        assert "taps-registry/base" in names
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stderr is not None
            process.stderr.close()


def test_ui_without_runs_says_so(registry: Registry) -> None:
    done = subprocess.run(
        [str(PROGRAM), "--home", str(registry.home), "ui"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 5
    assert "no MLflow runs yet" in done.stderr
