"""The steps of the demo. Each prints the command line that does it; what is done already is passed over."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ...registry import Registry
from ...registry.errors import IntegrityError
from ...registry.records import Task
from ..output import percent
from ..progress import make_progress
from ..terminal import echo, printable
from . import pictures

MODEL, PIXELS, LETTERS = "resnet10t", pictures.PIXELS, 52
# The base trains on letters; what it learns must be worth sharing, so it gets most of the demo's time.
PRETRAINING: dict[str, Any] = {"method": "full", "epochs": 5, "batch_size": 64, "lr": 2e-3, "augment": "none"}
ADDING: dict[str, Any] = {"epochs": 5, "augment": "light"}
TAPS: dict[str, Any] = {**ADDING, "sparsity": 2.0}
LITTLE: dict[str, Any] = {**ADDING, "budget": "1%", "encoding": "int4"}


class Story:
    """Tells the demo, with images and registry in a folder."""

    def __init__(self, folder: str, disabled_plugins: Iterable[str]) -> None:
        self.root = Path(folder)
        self.home = self.root / ".taps"
        self.disabled = tuple(disabled_plugins)

    def tell(self) -> None:
        """From an empty folder to a registry with a base and three tasks."""
        began = time.monotonic()
        images = self._images()
        self._command("init")
        with Registry.init(self.home, disabled_plugins=self.disabled) as registry:
            self.registry = registry
            self._base(images["characters"])
            self._say("Head only: the cheapest method, for comparison.")
            probe = self._add("digits-head-only", images["digits"], settings=ADDING, method="head-only")
            self._say("The same digits with TAPS: one gate per layer decides what is stored.")
            digits = self._add("digits", images["digits"])
            self._say("Letters with a budget: low-rank updates that fit in 1 % of the base.")
            self._add("greek", images["greek"], settings=LITTLE)
            before = self._state(["digits", "greek"])
            self._say("One more task. The earlier ones must not change.")
            self._add("cyrillic", images["cyrillic"], settings=LITTLE)
            self._prove_unchanged(before)
            self._command("cost")
            self._cost()
            scan = min((images["digits"] / "3").glob("*.png"))
            self._command("predict", "digits", str(scan), "--top", "2")
            for prediction in registry.predict("digits", [scan], top=2):
                echo("  " + ", ".join(f"{name} {percent(share)}" for name, share in prediction.classes))
            self._conclusion(probe, digits, time.monotonic() - began)

    def _images(self) -> dict[str, Path]:
        """The image folders, made once."""
        self._say(
            f"Images: rendered letters and scikit-learn's scans of digits, as class folders in {self.root}/images."
        )
        makers: dict[str, Callable[[Path], None]] = {"characters": pictures.characters, **pictures.TASKS}
        folders = {}
        for name, make in makers.items():
            folders[name] = self.root / "images" / name
            if not folders[name].exists():
                draft = self.root / "images" / f".{name}.{time.time_ns()}"
                make(draft)
                draft.rename(folders[name])
        return folders

    def _base(self, characters: Path) -> None:
        """A base of our own: nothing is downloaded, so a network is trained from scratch, exported, and put back in."""
        self._say("A base model, trained on letters (yours would come with --pretrained or --weights).")
        known = {base.name for base in self.registry.bases()}
        size = ("--input-size", str(PIXELS))
        self._command("add-base", "scratch", "--model", MODEL, "--random-init", *size)
        if "scratch" not in known:
            self.registry.add_base("scratch", MODEL, random_init=True, input_size=PIXELS)
        self._add("letters", characters, base="scratch", settings=PRETRAINING)
        weights = self.root / "letters.safetensors"
        self._command("export", "letters", str(weights))
        if not weights.exists():
            self.registry.export("letters", weights)
        classes = ("--model-arg", f"num_classes={LETTERS}")
        self._command("add-base", "base", "--model", MODEL, "--weights", str(weights), *classes, *size)
        if "base" not in known:
            self.registry.add_base(
                "base", MODEL, weights=weights, arguments={"num_classes": LETTERS}, input_size=PIXELS
            )

    def _add(self, name: str, data: Path, *, base: str = "base", settings: dict[str, Any] = TAPS, **more: Any) -> Task:
        """Add a task, or go on with one that an earlier demo began."""
        chosen = {**settings, **more}
        options = [part for key, value in chosen.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        self._command("add-task", name, "--base", base, "--data", str(data), *options)
        states = {task.name: task.state for task in self.registry.tasks()}
        progress = make_progress()
        try:
            if name not in states:
                self.registry.add_task(name, base, data, progress=progress, **chosen)
            elif states[name] == "training":
                self.registry.resume_task(name, progress=progress)
        finally:
            progress.close()
        task = self.registry.task(name)
        right = percent(task.metrics["test/accuracy"])
        self._say(f"{name}: test accuracy {right}, file size {self._share(name)} of the base.")
        return task

    def _share(self, task: str) -> str:
        return percent(self.registry.cost([task]).bases[0].tasks[0].share_of_bytes)

    def _state(self, names: Sequence[str]) -> dict[str, tuple[str, bytes]]:
        """Digest of each task's artifact, and its logits on fixed noise, bit for bit."""
        import torch

        noise = torch.rand(8, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
        state = {}
        for name in names:
            model = self.registry.load(name, device="cpu").model
            with torch.inference_mode():
                state[name] = (self.registry.task(name).digest, model(noise).numpy().tobytes())
        return state

    def _prove_unchanged(self, before: dict[str, tuple[str, bytes]]) -> None:
        for name, after in self._state(list(before)).items():
            if after != before[name]:
                raise IntegrityError(f"The task {name!r} has changed: this must never happen; please report it.")
            echo(f"  {name}: digest {after[0][:16]}...: file unchanged, logits bit-identical")

    def _cost(self) -> None:
        from ..costs import print_report

        print_report(self.registry.cost(base="base"), by="task")

    def _conclusion(self, probe: Task, digits: Task, seconds: float) -> None:
        reached, without = (percent(task.metrics["test/accuracy"]) for task in (digits, probe))
        self._say(
            f"Handwritten digits: {reached} with TAPS, storing {self._share('digits')} of the base; {without} with the "
            f"head only. Took {seconds:.0f} seconds."
        )
        echo("\nThe registry stays. Try next:")
        program = "taps-registry" if shutil.which("taps-registry") else sys.argv[0]  # `make demo` activates nothing
        home = f"{shlex.quote(program)} --home {shlex.quote(str(self.home))}"
        for line in ("show digits", "cost --by layer", "export greek greek.safetensors", "verify --deep", "ui"):
            echo(f"  {home} {line}")

    def _command(self, *words: str) -> None:
        click.secho(printable(f"\n$ taps-registry --home {shlex.join([str(self.home), *words])}"), bold=True)

    def _say(self, text: str) -> None:
        echo(f"\n{text}")
