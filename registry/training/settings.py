"""What a task can be told, which values make sense, and which may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from ...plugins.encodings import COMPRESSED
from ...plugins.methods import Method, MethodSettings
from ...plugins.methods.options import BUILT_IN
from ...plugins.options import Option, Options, check_options, flag, option, options_of
from ..amounts import parse
from ..data.transforms import AUGMENTATIONS
from ..errors import IntegrityError, SettingsError
from ..secrets import MASK, check_url, masked
from ..seeds import check_seed

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
AUTO = "auto"  # the encoding that is chosen when the weights are known
ENCODINGS = (
    "fp32 (exact), bf16, fp16, int8, int4, int3, svd or a plugin's, each also with +zstd; auto: the "
    "smallest within --encoding-tolerance."
)


@dataclass(frozen=True)
class TaskSettings:
    """Everything that decides a run. Two runs with equal settings on equal data and machines end with equal bytes.

    Its fields are the options of ``add-task``, each with its meaning. ``method`` is by default ``taps``, and within a
    budget ``taps-rank``, which spends it better, unless what is asked of the gates is what ``taps`` alone can do.

    Attributes:
        options: those of the method, by name; what is not there has the method's default.
    """

    data: str = option(
        "",
        "Folder of class folders, with or without train/ val/ test/; or timm's SCHEME/NAME[@ROOT].",
        metavar="DIR",
        on_resume="free",
    )
    val_data: str = option("", "Validation images, if they are elsewhere.", metavar="DIR", on_resume="free")
    test_data: str = option("", "Test images, if they are elsewhere.", metavar="DIR", on_resume="free")
    method: str = option(
        "",
        "Adaptation method, see `taps-registry plugins`. Default: taps, or taps-rank with --budget.",
        metavar="NAME",
    )
    epochs: int = option(30, "Number of passes over the training images.", metavar="N", least=1, on_resume="free")
    batch_size: int = option(32, "Batch size, per process.", metavar="N", least=1)
    lr: float | None = option(
        None, "Learning rate. Default: chosen by the base's plugin.", metavar="RATE", least=0, on_resume="retrains"
    )
    weight_decay: float = option(
        0.01,
        "Weight decay: gated layers towards the base, the head towards zero.",
        metavar="RATE",
        least=0,
        on_resume="retrains",
    )
    budget: str = option(
        "",
        "Limit on what is stored: 5% of the base, 2MB, 500k parameters, remaining/N.",
        metavar="AMOUNT",
        on_resume="retrains",
    )
    set: str = option("", "vmt-adapter: name of the set of tasks whose projections are shared.", metavar="NAME")
    encoding: str = option("fp32", ENCODINGS, metavar="NAME", on_resume="free")
    encoding_tolerance: float = option(
        0.2,
        "Percentage points of validation accuracy that --encoding auto may lose.",
        metavar="POINTS",
        least=0,
        on_resume="free",
    )
    augment: str = option(
        "standard",
        "Data augmentation: 'light' for random crops, 'standard' also flips and colour jitter.",
        choices=tuple(AUGMENTATIONS),
    )
    input_size: int | None = option(None, "Height and width of the images. Default: the base's.", metavar="PX", least=1)
    seed: int = option(0, "Seed for splits, head, order and augmentation.", metavar="N")
    device: str = option("auto", "Device to train on: auto, cpu, cuda, cuda:1, mps.", metavar="NAME", on_resume="free")
    precision: str = option(
        "fp32", "Precision of the forward and backward pass.", choices=tuple(PRECISIONS), on_resume="free"
    )
    workers: int | None = option(
        None,
        "Number of processes that load images; results do not depend on it. Default: as many as can be spared.",
        metavar="N",
        least=0,
        on_resume="free",
    )
    image_memory: int | None = option(
        None,
        "Memory for decoded images; 0 to keep none. Default: a quarter of the free memory.",
        metavar="2GB",
        least=0,
        on_resume="free",
        unit="bytes",
    )
    processes: int = option(1, "Number of training processes, one per device.", metavar="N", least=1, on_resume="free")
    tracker: str = option(
        "mlflow", "Experiment tracker: mlflow, csv, none, or a plugin's.", metavar="NAME", on_resume="free"
    )
    tracking_uri: str = option(
        "", "URI of a tracking server. Default: inside the registry.", metavar="URI", on_resume="free"
    )
    skip_bad_images: bool = option(False, "Skip unreadable images instead of stopping with an error.")
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.method:
            asked = self.options.get("granularity", "layer"), self.options.get("norms", "task")
            by_layer = asked[0] == "layer" and asked[1] != "gated"
            object.__setattr__(self, "method", "taps-rank" if self.budget and by_layer else "taps")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TaskSettings:
        """Settings from values by name, the method's among them or in ``arguments``."""
        own, theirs = _apart(given)
        return cls(**own, options=theirs)

    @classmethod
    def stored(cls, raw: Mapping[str, Any], task: str) -> TaskSettings:
        """Those that the catalog has of a task. Raises IntegrityError if something else than settings is there."""
        try:
            settings = cls.of(raw)
            settings.check()
        except (TypeError, ValueError, AttributeError, SettingsError) as error:
            raise IntegrityError(
                f"The settings of {task!r} in the catalog are damaged: {error} Restore the catalog from a backup."
            ) from error
        return settings

    def check(self) -> None:
        """Raises SettingsError for the first value that makes no sense; options of the method are not looked at."""
        try:
            check_options(self)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        check_seed(self.seed)
        parse(self.budget)
        check_url(self.tracking_uri, "--tracking-uri")
        if self.encoding != AUTO and self.encoding_tolerance != TaskSettings.encoding_tolerance:
            raise SettingsError("--encoding-tolerance is for --encoding auto; leave it out.")

    @property
    def encoding_before(self) -> str:
        """The encoding until there is something to choose it for: ``auto`` begins with the exact one."""
        return "fp32" if self.encoding == AUTO else self.encoding

    def check_method(self, method: Method) -> None:
        """Raises SettingsError for what means nothing to the method, or does not suit it."""
        method_settings = self.for_method(method, 0.0)
        if self.set and not method.extension(method_settings):
            raise SettingsError(f"--method {method.name} does not accept --set; leave it out.")
        if method.needs_limits and not self.budget:
            raise SettingsError(f"--method {method.name} spends a budget: say which, such as --budget 1%.")
        try:
            method.check(method_settings)
        except ValueError as error:
            raise SettingsError(str(error)) from error

    def method_options(self, method: Method) -> Options:
        """The method's options, with its defaults for those that are not given. Raises SettingsError as it must."""
        known = options_of(method.options)
        decided = {name for name, declared in known.items() if declared.without_budget and self.budget}
        unused = [
            _flag(name)
            for name, value in sorted(self.options.items())
            if name not in known or (name in decided and value != known[name].default)
        ]
        if unused:
            within = "within a budget " if decided.intersection(self.options) else ""
            takes = ", ".join(_flag(name) for name in sorted(known) if name not in decided) or "no options of its own"
            raise SettingsError(
                f"--method {method.name} {within}does not accept {', '.join(unused)}; leave it out. It takes {takes}."
            )
        try:
            return method.options.of(self.options)
        except ValueError as error:
            raise SettingsError(f"--method {method.name}: {error}") from error

    def for_method(self, method: Method, default_lr: float, *, train_common: bool = True) -> MethodSettings:
        """What the method is told of it."""
        return MethodSettings(
            self.method_options(method),
            epochs=self.epochs,
            lr=self.lr if self.lr is not None else default_lr,
            weight_decay=self.weight_decay,
            seed=self.seed,
            train_common=train_common,
        )

    def as_json(self) -> dict[str, Any]:
        """For the catalog and the tracker: without passwords, the method's options beside the others."""
        values = asdict(self)
        return {**values.pop("options"), **values, "tracking_uri": masked(self.tracking_uri)}

    def changed(self, changes: Mapping[str, Any], method: Method) -> TaskSettings:
        """These settings for a resumed run.

        Raises:
            SettingsError: for a change that would make it another run.
        """
        own, theirs = _apart(changes)
        own = {name: value for name, value in own.items() if getattr(self, name) != value}
        theirs = {name: value for name, value in theirs.items() if self.options.get(name) != value}
        declared = _declared(method)
        fixed = sorted(name for name in (*own, *theirs) if name in declared and declared[name].on_resume == "fixed")
        if fixed:
            raise SettingsError(
                f"A resumed run keeps its {', '.join(_flag(name) for name in fixed)}. "
                "Leave it out, or `taps-registry remove` the task and add it anew."
            )
        if MASK in own.get("tracking_uri", self.tracking_uri):
            if "tracker" not in own:
                raise SettingsError(
                    f"The run is tracked at {self.tracking_uri}, whose password is not stored: name it again with "
                    "--tracking-uri, or go on with --tracker none."
                )
            own["tracking_uri"] = ""
        if own.get("encoding", AUTO) != AUTO and "encoding_tolerance" not in changes:
            own["encoding_tolerance"] = TaskSettings.encoding_tolerance  # it was for ``auto``
        return replace(self, **own, options={**self.options, **theirs})

    def trained_under(self, method: Method) -> dict[str, Any]:
        """The settings that weights and gates depend on: if they change, a resumed run trains again.

        Within a budget that is the encoding as well, which decides how much fits; lossless compression does not.
        """
        values = {**vars(self.method_options(method)), **vars(self)}
        under = {name: values[name] for name, known in _declared(method).items() if known.on_resume == "retrains"}
        return {**under, "encoding": self.encoding_before.removesuffix(COMPRESSED)} if self.budget else under


def _declared(method: Method) -> dict[str, Option]:
    """All options of a task by this method."""
    return {**options_of(method.options), **options_of(TaskSettings)}


def _apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of values by name those that every task has, and those that are its method's. Raises SettingsError."""
    every = options_of(TaskSettings)
    own = {name: value for name, value in given.items() if name in every}
    theirs = {name: value for name, value in given.items() if name not in every and name != "arguments"}
    arguments = given.get("arguments") or {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise SettingsError(f"arguments must be a dict of options by name, got {arguments!r}.")
    if twice := sorted(name for name in arguments if name in given):
        raise SettingsError(f"{flag(twice[0])} is given twice, once by --method-arg.")
    return own, {**theirs, **arguments}


def _flag(name: str) -> str:
    """What the command line calls an option: those of plugins' methods come by ``--method-arg``."""
    flags = {*options_of(TaskSettings)}.union(*map(options_of, BUILT_IN))
    return flag(name) if name in flags else f"--method-arg {name}"


class TaskOptions(TypedDict, total=False):
    """What ``Registry.add_task`` takes by keyword: fields of ``TaskSettings``, and options of the built-in methods.

    ``arguments`` has those of a plugin's method.
    """

    val_data: str | Path
    test_data: str | Path
    method: str
    epochs: int
    batch_size: int
    lr: float | None
    weight_decay: float
    budget: str
    set: str
    encoding: str
    encoding_tolerance: float
    augment: str
    input_size: int | None
    seed: int
    device: str
    precision: str
    workers: int | None
    image_memory: int | None
    processes: int
    tracker: str
    tracking_uri: str
    skip_bad_images: bool
    sparsity: float
    penalty: str
    threshold: float
    score_lr: float
    norms: str
    granularity: str
    rank: int
    alpha: float
    keep: float
    share: str
    own: str
    arguments: Mapping[str, Any]


class ResumeOptions(TaskOptions, total=False):
    """What ``Registry.resume_task`` takes by keyword; which of these may change is in their declaration."""

    data: str | Path
