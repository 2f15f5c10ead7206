"""How fast training, storing, loading and starting are, as ratios against what one would do without the registry.

    python benchmarks/speed.py --quick                                # minutes, on the CPU
    python benchmarks/speed.py                                        # an hour or more, on two cores
    python benchmarks/speed.py --device cuda --precision bf16 --compile
    python benchmarks/speed.py --part steps --part memory --model resnet50

What is compared is measured in one run and in turns (A B, B A, ...): a ratio is the median of the ratios of the pairs,
with an interval that holds the median in 95 % of resamplings of them. Absolute times of another run mean nothing.
SPEED.md says what each part measures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy
from conditions import conditions, write
from PIL import Image

CLASSES = 100
BUDGET = "10%"
BEYOND = 4000  # steps of the runs that steps are taken from: no such run ends
PARTS = ("steps", "memory", "add-task", "files", "loading", "help")


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    device: str
    precision: str
    compile: bool
    models: tuple[str, ...]
    batch: int
    pixels: int
    pairs: int
    warmup: int
    quick: bool
    clock: str = "wall"

    def now(self) -> float:
        """Seconds, by the clock that training is measured with."""
        return process_time() if self.clock == "cpu" else perf_counter()

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Ratio:
    """One comparison; ``target`` is what it should not exceed, or not fall below where ``at_least``."""

    part: str
    what: str
    ratio: float
    low: float
    high: float
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        holds = self.ratio >= self.target if self.at_least else self.ratio <= self.target
        return f"{'holds' if holds else 'MISSES'} {'>=' if self.at_least else '<='} {self.target}"


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="All of them unless named.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile for every contender.")
@click.option("--model", "models", multiple=True, help="Default: resnet50 and vit_small_patch16_224.")
@click.option("--batch", default=16, show_default=True)
@click.option("--pixels", default=224, show_default=True)
@click.option("--pairs", default=15, show_default=True, help="Of steps.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="For training: cpu counts this process's own work, on a machine that others work on; set OMP_NUM_THREADS=1.",
)
@click.option("--quick", is_flag=True, help="Few pairs, small images: to see that it runs, not to cite.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/speed.json"))
@click.option("--child", hidden=True, help="The memory of one contender, measured in this process.")
def main(
    parts: tuple[str, ...],
    device: str,
    precision: str,
    compiled: bool,
    models: tuple[str, ...],
    batch: int,
    pixels: int,
    pairs: int,
    clock: str,
    quick: bool,
    out: Path,
    child: str | None,
) -> None:
    """Measure ratios, print them as a table, and write them down."""
    options = Options(
        device=device,
        precision=precision,
        compile=compiled,
        models=models or ("resnet50", "vit_small_patch16_224"),
        batch=8 if quick else batch,
        pixels=96 if quick and pixels == 224 else pixels,
        pairs=5 if quick else pairs,
        warmup=2 if quick else 3,
        quick=quick,
        clock=clock,
    )
    if child:
        return click.echo(json.dumps(_peak(options, *child.split("/"))))
    measures: dict[str, Callable[[Options], Iterator[Ratio]]] = {
        "steps": steps,
        "memory": memory,
        "add-task": whole_runs,
        "files": files,
        "loading": loading,
        "help": start,
    }
    found: list[Ratio] = []
    for part in parts or PARTS:
        for ratio in measures[part](options):
            found.append(ratio)
            between = f"{ratio.low:.3f} to {ratio.high:.3f}"
            click.echo(f"{ratio.part:9} {ratio.what:62} {ratio.ratio:7.3f}  ({between})  {ratio.verdict}")
            if ratio.note:
                click.echo(f"{'':10}{ratio.note}")
    packages = ["taps-registry", "torch", "timm", "accelerate", "pillow", "numpy"]
    where = conditions(packages)
    if options.on_gpu:
        import torch

        where["machine"]["gpu"] = torch.cuda.get_device_name()
    results = [{**asdict(ratio), "verdict": ratio.verdict} for ratio in found]
    write(out, {"options": asdict(options), **where, "results": results})
    return click.echo(f"Written to {out}.")


# Ratios


def in_turns(first: Callable[[], float], second: Callable[[], float], pairs: int) -> list[float]:
    """``first`` over ``second``, pair by pair; who begins changes from pair to pair."""
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            below = second()
            above = first()
        else:
            above = first()
            below = second()
        ratios.append(above / below)
    return ratios


def summed_up(part: str, what: str, ratios: Sequence[float], **more: Any) -> Ratio:
    """The median, and an interval by resampling."""
    chance = numpy.random.default_rng(0)
    medians = numpy.median(chance.choice(numpy.asarray(ratios), (4000, len(ratios))), axis=1)
    low, high = numpy.quantile(medians, (0.025, 0.975))
    return Ratio(part, what, statistics.median(ratios), float(low), float(high), **more)


def exactly(part: str, what: str, ratio: float, **more: Any) -> Ratio:
    """A ratio that is the same each time."""
    return Ratio(part, what, ratio, ratio, ratio, **more)


# Steps: the loop's own, with random pixels


class Steps:
    """Steps of ``registry.training.loop.Trainer`` on one batch, of a run that could go on for long."""

    def __init__(self, options: Options, model: str, method: str) -> None:
        import torch

        from taps_registry.registry.training.loop import Trainer
        from taps_registry.registry.training.progress import Progress

        self.options = options
        self.trainer = Trainer(_job(options, model, method), Progress(), lambda result: None)
        if options.compile:
            self.trainer.model = torch.compile(self.trainer.model)
        self.trainer.adaptation.start_epoch(0)
        self.trainer.adaptation.train()
        device = self.trainer.accelerator.device
        chance = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(options.batch, 3, options.pixels, options.pixels, generator=chance).to(device)
        self.labels = torch.randint(0, CLASSES, (options.batch,), generator=chance).to(device)
        self.done = 0

    def __call__(self) -> float:
        """Take a step. Returns its seconds."""
        self._wait()
        begun = self.options.now()
        self.trainer._step(*divmod(self.done, self.trainer.steps), self.pixels, self.labels)
        self._wait()
        self.done += 1
        return self.options.now() - begun

    def fix_gates(self) -> None:
        """Go on to where the loop fixes the gates: those that ``BUDGET`` has room for, of a worth drawn anew."""
        import torch

        gates = self.trainer.adaptation.scores
        chance = torch.Generator().manual_seed(0)
        gates.worth.copy_(torch.rand(len(gates.worth), generator=chance))
        self.done = BEYOND // 2
        self()
        if not gates.fixed:
            raise click.ClickException("The loop did not fix the gates: fix_gates of this file must follow it.")

    def opened(self) -> str:
        """Which layers train, for the note."""
        states = self.trainer.adaptation.layer_states()
        share = self.trainer.footprint().params
        stored = (share.weights + share.norms) / self.trainer.job.backbone_params
        return f"{sum(state.open for state in states)} of {len(states)} layers open, {100 * stored:.1f} % of the base"

    def _wait(self) -> None:
        if self.options.on_gpu:
            import torch

            torch.cuda.synchronize()


class Composed(Steps):
    """The usual implementation: each layer computes ``W0 + 1[s >= tau] D`` in the forward pass, D and s train."""

    def __init__(self, options: Options, model: str) -> None:
        super().__init__(options, model, "full")
        _parametrise(self.trainer)


def _parametrise(trainer: Any) -> None:
    """Put deltas and scores under the weights of every layer, and optimisers and penalty around them."""
    import torch
    from timm.optim import create_optimizer_v2
    from torch import Tensor, nn
    from torch.nn.utils import parametrize

    from taps_registry.plugins.architectures.pieces import tensor_of

    class Step(torch.autograd.Function):
        """1 from the threshold upwards; gradients pass straight through."""

        @staticmethod
        def forward(context: Any, score: Tensor) -> Tensor:
            return (score >= 0.1).to(score.dtype)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient

    class Sum(nn.Module):
        def __init__(self, base: Tensor) -> None:
            super().__init__()
            self.register_buffer("base", base.detach().clone())
            self.score = nn.Parameter(torch.full((), 0.15, device=base.device))

        def forward(self, delta: Tensor) -> Tensor:
            return self.base + Step.apply(self.score) * delta

        def right_inverse(self, weight: Tensor) -> Tensor:
            return torch.zeros_like(weight)

    sums = []
    for whole in dict.fromkeys(tensor_of(name) for name in trainer.job.partition.layer_tensors()):  # qkv is one here
        path, _, name = whole.rpartition(".")
        module = trainer.raw.get_submodule(path)
        made = Sum(getattr(module, name))
        parametrize.register_parametrization(module, name, made)
        sums.append(made)
    scores = [made.score for made in sums]
    known = {id(score) for score in scores}
    weights = [parameter for parameter in trainer.raw.parameters() if id(parameter) not in known]
    trainer.optimiser = trainer.accelerator.prepare(create_optimizer_v2(weights, opt="adamw", lr=1e-3, fused=True))
    trainer.score_optimiser = torch.optim.Adam(scores, lr=0.01)
    trainer.schedules = []
    before_step = trainer.adaptation.before_step

    def penalised(lr: float) -> None:
        torch.autograd.backward(sum(score.abs() for score in scores) / len(scores))
        before_step(lr)

    trainer.adaptation.before_step = penalised


def _job(options: Options, model: str, method: str) -> Any:
    """A job as ``add-task`` prepares it, for a random base and images that nobody looks at."""
    import timm
    import torch

    from taps_registry.plugins.manager import PluginManager
    from taps_registry.registry.models.build import has_fixed_size, input_config
    from taps_registry.registry.models.measure import parameters
    from taps_registry.registry.training.budget import limits
    from taps_registry.registry.training.data import TaskData
    from taps_registry.registry.training.loop import Job
    from taps_registry.registry.training.settings import TaskSettings
    from taps_registry.registry.training.sources import Sample

    torch.manual_seed(0)
    sized = {"img_size": options.pixels} if has_fixed_size(model) else {}
    built = timm.create_model(model, num_classes=CLASSES, **sized)
    plugins = PluginManager()
    architecture = plugins.architecture_for(built)
    partition = plugins.partition(architecture, built)
    samples = tuple(Sample(str(number), 0, bytes) for number in range(10 * options.batch))
    settings = TaskSettings(
        data="",
        method=method,
        epochs=BEYOND // 10,
        batch_size=options.batch,
        budget=BUDGET if method == "taps" else "",
        device=options.device,
        precision=options.precision,
        image_memory=0,
    )
    job = Job(
        settings=settings,
        model=built,
        partition=partition,
        method=plugins.method(method),
        method_settings=settings.for_method(architecture.learning_rate),
        encoding=plugins.encoding("fp32"),
        data=TaskData(tuple(map(str, range(CLASSES))), samples, samples, (), ""),
        input=input_config(built, options.pixels),
        backbone_params=parameters(built, without=partition.head),
        folder=Path(tempfile.gettempdir()),
    )
    return replace(job, method_settings=replace(job.method_settings, limits=limits(job)))


def steps(options: Options) -> Iterator[Ratio]:
    """A step of taps, before and after its gates are fixed, and of the usual implementation, against one of full."""
    for model in options.models:
        full, taps, composed = Steps(options, model, "full"), Steps(options, model, "taps"), Composed(options, model)
        for contender in (full, taps, composed):
            for _ in range(options.warmup):
                contender()
        what = f"{model}: a step of %s / of full"
        yield summed_up("steps", what % "taps, gates moving", in_turns(taps, full, options.pairs), target=1.05)
        ratios = in_turns(composed, full, options.pairs)
        yield summed_up("steps", what % "W0 + I*D in the forward pass", ratios)
        ratios = in_turns(taps, composed, options.pairs)
        yield summed_up("steps", f"{model}: a step of taps, gates moving / of W0 + I*D", ratios)
        taps.fix_gates()
        for _ in range(options.warmup):
            taps()
        ratios = in_turns(taps, full, options.pairs)
        yield summed_up("steps", what % "taps, gates fixed", ratios, target=0.80, note=taps.opened())


# Memory: a process for each contender


def _peak(options: Options, model: str, contender: str) -> dict[str, int]:
    """Bytes of a run's steps before and after its gates are fixed, beyond what the imports took."""
    import psutil
    import torch

    for name in ("timm.optim", "taps_registry.registry.training.loop"):
        import_module(name)  # their own memory is nobody's
    before = psutil.Process().memory_info().rss
    made = Composed(options, model) if contender == "composed" else Steps(options, model, contender)
    for _ in range(options.warmup):
        made()
    if contender == "taps":
        made.fix_gates()
        for _ in range(options.warmup):
            made()
    if options.on_gpu:
        return {"bytes": torch.cuda.max_memory_allocated()}
    import resource

    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, "imports": before}


def memory(options: Options) -> Iterator[Ratio]:
    """Peaks of memory, each in a process of its own."""
    given = ["--device", options.device, "--precision", options.precision, "--batch", str(options.batch)]
    given += ["--pixels", str(options.pixels), *(["--compile"] if options.compile else [])]
    for model in options.models:
        peaks = {}
        for contender in ("full", "taps", "composed"):
            command = [sys.executable, __file__, *given, "--child", f"{model}/{contender}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  (this file)
            peaks[contender] = json.loads(done.stdout.splitlines()[-1])["bytes"]
        note = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items())
        what = f"{model}: peak memory of %s / of full"
        yield exactly("memory", what % "taps", peaks["taps"] / peaks["full"], target=1.35, note=note)
        yield exactly("memory", what % "W0 + I*D", peaks["composed"] / peaks["full"])


# Whole runs of add-task


@contextmanager
def _images(count: int, classes: int, size: tuple[int, int]) -> Iterator[Path]:
    """Class folders of JPEG files of noise over blobs, about as hard to decode as photographs."""
    chance = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / str(number % classes) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            blobs = Image.fromarray(chance.integers(0, 256, (12, 16, 3), dtype="uint8")).resize(size)
            pixels = numpy.asarray(blobs) + chance.normal(0, 12, (size[1], size[0], 3))
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(path, quality=92)
        yield Path(folder)


def whole_runs(options: Options) -> Iterator[Ratio]:
    """``add-task`` from the first image to the catalog, for equal epochs."""
    from taps_registry import Registry

    model, epochs, pairs = options.models[0], 5 if options.quick else 10, 2 if options.quick else 5
    per_class = 12 if options.quick else 40
    told = {
        "epochs": epochs,
        "batch_size": options.batch,
        "tracker": "none",
        "device": options.device,
        "precision": options.precision,
        "input_size": options.pixels,
    }
    with (
        _images(4 * per_class, 4, (256, 192)) as images,
        tempfile.TemporaryDirectory() as home,
        Registry.init(Path(home) / "home") as registry,
    ):
        registry.add_base("base", model, random_init=True)

        def run(**settings: Any) -> float:
            begun = options.now()
            registry.add_task("task", "base", images, **told, **settings)
            seconds = options.now() - begun
            registry.remove("task")
            registry.gc()
            return seconds

        ratios = in_turns(lambda: run(method="taps", budget=BUDGET), lambda: run(method="full"), pairs)
        what = f"{model}: add-task --budget {BUDGET} / --method full, {epochs} epochs"
        yield summed_up("add-task", what, ratios, target=0.80)


# Files, and loading them


def files(options: Options) -> Iterator[Ratio]:
    """How much of an artifact is not tensors, and how fast a task is put together."""
    from safetensors import safe_open

    from taps_registry import Registry
    from taps_registry.registry.catalog import bases, tasks
    from taps_registry.registry.inference.compose import compose
    from taps_registry.registry.models.bases import load

    model = options.models[0]
    told = {"epochs": 3, "augment": "none", "tracker": "none", "batch_size": 8, "input_size": 64, "workers": 0}
    with (
        _images(48, 3, (80, 60)) as images,
        tempfile.TemporaryDirectory() as home,
        Registry.init(Path(home) / "home") as registry,
    ):
        registry.add_base("base", model, random_init=True)
        for name, settings in (
            ("taps", {"budget": BUDGET}),
            ("norm-only", {"method": "norm-only"}),
            ("head-only", {"method": "head-only"}),
        ):
            task = registry.add_task(name, "base", images, **told, **settings)
            with safe_open(registry._context.store.path(task.digest), "pt") as file:
                held = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118  (it is no dict)
            target = 1.01 if name == "taps" else None
            note = f"{task.bytes:,} bytes, {held:,} of them tensors"
            what = f"{model}: bytes of the file of a task / of its tensors, {name}"
            yield exactly("files", what, task.bytes / held, target=target, note=note)

        store = registry._context.store
        with registry._context.catalog.read() as session:
            base, task = bases.get(session, "base"), tasks.get(session, "taps")
        paths = [store.path(base.object), store.path(task.digest)]
        loaded = load(registry._context, base)
        pairs = 4 if options.quick else 15
        whole = _timed(lambda: registry.load("taps", device="cpu"))
        part = _timed(lambda: compose(loaded, store.get(task.digest), store.get))
        read = _timed(lambda: [path.read_bytes() for path in paths])
        held = [numpy.frombuffer(path.read_bytes(), dtype="uint8") for path in paths]
        copy = _timed(lambda: [array.copy() for array in held])
        note = f"{sum(path.stat().st_size for path in paths) / 1e6:.0f} MB of base and artifact, in the page cache"
        for what, above, target in (
            ("reading base and artifact / loading the task", read, 0.5),
            ("copying base and artifact in memory / loading the task", copy, None),
            ("reading base and artifact / composing on a base loaded already", read, 0.5),
        ):
            below = part if "composing" in what else whole
            ratios = in_turns(above, below, pairs)
            yield summed_up("files", f"{model}: {what}", ratios, target=target, at_least=True, note=note)


def _timed(work: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of each call, after one that is not counted."""
    work()

    def timed() -> float:
        begun = perf_counter()
        work()
        return perf_counter() - begun

    return timed


# Loading images


def loading(options: Options) -> Iterator[Ratio]:
    """The share of a ResNet-18's training that waits for images, with and without memory for them."""
    count, size = (96, (320, 240)) if options.quick else (480, (500, 375))
    epochs = 2 if options.quick else 3
    with _images(count, 4, size) as images:
        for memory_for_images, what in ((0, "decoded each time"), (None, "kept once decoded")):
            shares = _waiting(options, images, memory_for_images, epochs)
            note = f"first epoch {100 * shares[0]:.1f} % of its time, later ones as given; {count} JPEGs of {size}"
            name = f"resnet18, {options.pixels} px: share of a step spent waiting, images {what}"
            yield summed_up("loading", name, shares[1:], target=0.5, note=note)
        yield from _an_image(images, options.pixels)


def _an_image(images: Path, pixels: int) -> Iterator[Ratio]:
    """Where the time of one training image goes, in one process: decoding, transforming, taking it from memory."""
    from taps_registry.registry.models.transforms import training_transform
    from taps_registry.registry.records import InputConfig
    from taps_registry.registry.training.images import Images
    from taps_registry.registry.training.sources import find

    samples = find(str(images))["train"].samples[:64]
    config = InputConfig((3, pixels, pixels), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.95, "center")
    transform = training_transform(config, "standard")
    decoded = [sample.image() for sample in samples]
    plain = Images(samples, transform)
    kept = Images(samples, transform, room=10**9)
    works = {
        "decoded": lambda: [sample.image() for sample in samples],
        "transformed": lambda: [transform(image) for image in decoded],
        "in all": lambda: [plain[index] for index in range(len(samples))],
        "in all once kept": lambda: [kept[index] for index in range(len(samples))],
    }
    timers = {name: _timed(work) for name, work in works.items()}
    rounds = [{name: timer() for name, timer in timers.items()} for _ in range(5)]
    medians = {name: 1000 * statistics.median(each[name] for each in rounds) / len(samples) for name in works}
    note = ", ".join(f"{name} {median:.2f} ms" for name, median in medians.items())
    ratios = [each["in all once kept"] / each["in all"] for each in rounds]
    yield summed_up("loading", f"{pixels} px: an image once kept / decoded each time", ratios, note=note)


def _waiting(options: Options, images: Path, memory_for_images: int | None, epochs: int) -> list[float]:
    """For each epoch the share of its time in which the loop waits for its next batch."""
    from taps_registry.registry.training.data import open_data
    from taps_registry.registry.training.loop import Trainer
    from taps_registry.registry.training.progress import Progress

    job = _job(replace(options, batch=32), "resnet18", "taps")
    settings = replace(job.settings, image_memory=memory_for_images)
    trainer = Trainer(replace(job, data=open_data(str(images)), settings=settings), Progress(), lambda result: None)
    trainer.adaptation.start_epoch(0)
    trainer.adaptation.train()
    shares = []
    for epoch in range(epochs):
        trainer.sampler.epoch = trainer.images.epoch = epoch
        waited, begun = 0.0, perf_counter()
        batches = iter(trainer.loader)
        for step in range(trainer.steps):
            asked = perf_counter()
            pixels, labels = next(batches)
            waited += perf_counter() - asked
            trainer._step(epoch, step, pixels, labels)
        shares.append(waited / (perf_counter() - begun))
    return shares


# Starting


def start(options: Options) -> Iterator[Ratio]:
    """``--help`` in a fresh process, beside Python doing nothing."""
    program = str(Path(sys.executable).with_name("taps-registry"))

    def seconds(*command: str) -> Callable[[], float]:
        return _timed(lambda: subprocess.run(command, capture_output=True, check=True))  # noqa: S603  (ours)

    asked, nothing = seconds(program, "--help"), seconds(sys.executable, "-c", "pass")
    times = [asked() for _ in range(5 if options.quick else 15)]
    ratios = in_turns(asked, nothing, 5 if options.quick else 15)
    note = f"--help takes {statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f}); target 0.2 s"
    yield summed_up("help", "taps-registry --help / python -c pass", ratios, note=note)


if __name__ == "__main__":
    main()
