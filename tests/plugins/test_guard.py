"""A plugin's mistake is one line that names it, and harms nobody else."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taps_registry import Registry
from taps_registry.plugins import Adaptation, Architecture, Encoding, FixedSet, PluginError, TapsError, Tracker
from taps_registry.plugins.encodings.floats import Float32
from taps_registry.plugins.guard import described, package_of
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods.head_only import HeadOnly
from taps_registry.registry.errors import DataError, TrainingError

Install = Callable[..., Path]
HEAD = "from taps_registry.plugins import *\nfrom taps_registry.plugins import hookimpl\n"
QUICK: dict[str, Any] = {"epochs": 1, "augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}


class Broken(HeadOnly):
    """Each call of a contract raises or returns what the test put here."""

    name = "broken"
    result: Any = None

    def least(self, model: Any, partition: Any, settings: Any) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def least(result: object) -> Any:
    broken = Broken()
    broken.result = result
    return broken.least(None, None, None)  # type: ignore[arg-type]


def test_what_a_plugin_raises_names_plugin_package_and_method_and_keeps_its_cause() -> None:
    with pytest.raises(PluginError) as caught:
        least(KeyError("x"))
    text = str(caught.value)
    assert text.startswith("The method 'broken' of ")
    assert "failed in least: KeyError: 'x'" in text
    assert "\n" not in text
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_a_plugin_returns_of_a_wrong_type_is_its_mistake() -> None:
    with pytest.raises(PluginError, match=r"'broken' of .* returned NoneType from least, where a Stored belongs\."):
        least(None)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        DataError("ours"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ],
)
def test_what_is_nobodys_mistake_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        least(error)
    assert caught.value is error


def test_objects_of_plugins_stay_of_their_own_class_and_can_be_pickled() -> None:
    copied = pickle.loads(pickle.dumps(Float32()))
    assert type(copied) is Float32
    assert copied.nbytes((2, 3)) == 24


@pytest.mark.parametrize("contract", [Architecture, Adaptation, Encoding, FixedSet, Tracker])
def test_every_contract_is_guarded(contract: type) -> None:
    public = [name for name, member in vars(contract).items() if callable(member) and not name.startswith("_")]
    made = type("Made", (contract,), {name: lambda self, *given: 1 / 0 for name in public})
    assert public or contract is Encoding
    for name in public:
        with pytest.raises(PluginError, match=f"failed in {name}|failed in <lambda>: ZeroDivisionError"):
            vars(made)[name](made.__new__(made))


def test_methods_of_a_mixin_and_static_ones_are_guarded() -> None:
    class Mixin:
        def least(self, model: Any, partition: Any, settings: Any) -> Any:
            return 1 / 0

    class Mixed(Mixin, HeadOnly):
        @staticmethod
        def extension(settings: Any) -> Any:
            return 1 / 0

    for call in (lambda: Mixed().least(None, None, None), lambda: Mixed().extension(None)):
        with pytest.raises(PluginError, match=r"failed in (least|extension): ZeroDivisionError"):
            call()


def test_an_error_that_cannot_say_what_it_is_is_told_by_its_name() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    with pytest.raises(PluginError, match="failed in least: MuteError"):
        least(MuteError())


def test_built_in_plugins_are_of_this_package() -> None:
    assert package_of(HeadOnly) == "taps-registry 0.1.0"
    assert described(HeadOnly()) == "The method 'head-only' of taps-registry 0.1.0"


# Whole ways


MATCHES = (
    HEAD
    + """
class Bad(Generic):
    name = "bad"
    fallback = False
    def matches(self, model):
        {matches}

@hookimpl
def register_architectures(registrar):
    registrar.architecture(Bad())
"""
)


@pytest.mark.parametrize("matches", ["raise RuntimeError('oh no')", "return 'yes'", "model.no_such_thing"])
def test_a_plugin_that_cannot_say_what_it_knows_is_passed_over_with_a_note(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture, matches: str
) -> None:
    install("bad-plugin", "bad", MATCHES.format(matches=matches))
    with caplog.at_level(logging.WARNING), Registry.init(tmp_path / "home") as registry:
        base = registry.add_base("base", "test_resnet", random_init=True, input_size=32)
    assert base.plugin == "resnet"
    (note,) = [record.getMessage() for record in caplog.records if record.name.startswith("taps_registry")]
    assert "'bad' of bad-plugin 1.0" in note
    assert note.endswith("It was passed over.")


METHOD = (
    HEAD
    + """
class Bad(FixedSet):
    name = "bad"
    summary = "a mistake"
    def tensors(self, model, partition, settings):
        return partition.head
    {mistake}

@hookimpl
def register_methods(registrar):
    registrar.method(Bad())
"""
)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("def least(self, model, partition, settings): return model.nothing", "failed in least: AttributeError"),
        ("def least(self, model, partition, settings): return 3", "returned int from least"),
        ("def adapt(self, model, partition, settings): 1 / 0", "failed in adapt: ZeroDivisionError"),
        ("def adapt(self, model, partition, settings): pass", "returned NoneType from adapt"),
        ("def least(self, model, partition, settings): return Stored(None)", "failed in least: TypeError"),
        ("def extension(self, settings): return {'x': {1, 2}}", "from extension what JSON cannot hold"),
        ("def tensors(self, model, partition, settings): return ['ghost.weight']", "ghost.weight"),
        ("def tensors(self, model, partition, settings): return partition.norm_tensors()", "does not store the head"),
    ],
)
def test_a_methods_mistake_is_one_line_and_leaves_nothing(
    install: Install, registry: Registry, images: Path, mistake: str, said: str
) -> None:
    install("bad-plugin", "bad", METHOD.format(mistake=mistake))
    with Registry.open(registry.home) as opened:
        opened.add_task("good", "base", images, **QUICK, method="head-only")
        with pytest.raises(PluginError) as caught:
            opened.add_task("task", "base", images, **QUICK, method="bad")
        text = str(caught.value)
        assert said in text
        assert "'bad' of bad-plugin 1.0" in text
        assert "--resume" not in text
        assert "\n" not in text
        assert [task.name for task in opened.tasks()] == ["good"]
        assert opened.add_task("task", "base", images, **QUICK, method="head-only").state == "ready"


ENCODING = (
    HEAD
    + """
import torch
class Bad(Encoding):
    name = "bad"
    summary = "a mistake"
    def encode(self, value, base):
        {encode}
    def decode(self, parts, base):
        {decode}
    def nbytes(self, shape):
        {nbytes}

@hookimpl
def register_encodings(registrar):
    registrar.encoding(Bad())
"""
)
GOOD = {"encode": 'return {"": value}', "decode": 'return parts[""]', "nbytes": "return 4 * torch.Size(shape).numel()"}


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"encode": "raise OSError('x')"}, "failed in encode: OSError: x"),
        ({"encode": "return {0: value}"}, "a dict of int to Tensor, not of str to Tensor"),
        ({"encode": "return value"}, "returned Tensor from encode, where a dict belongs"),
        ({"decode": "return parts['x']"}, "does not decode what it encoded: 'x'"),
        ({"decode": "return parts[''].double()"}, "float64"),
        ({"decode": "return parts[''].flatten()"}, "shape"),
        ({"nbytes": "return '4'"}, "returned str from nbytes"),
        ({"nbytes": "return 4"}, "nbytes"),
        ({"encode": "base.zero_(); return {'': value}"}, "writes into the base's tensor in encode"),
    ],
)
def test_an_encodings_mistake_is_found_before_training(
    install: Install, registry: Registry, images: Path, mistake: dict[str, str], said: str
) -> None:
    install("bad-plugin", "bad", ENCODING.format(**{**GOOD, **mistake}))
    with Registry.open(registry.home) as opened:
        with pytest.raises(PluginError) as caught:
            opened.add_task("task", "base", images, **QUICK, method="full", encoding="bad")
        assert said in str(caught.value)
        assert "'bad' of bad-plugin 1.0" in str(caught.value)
        assert "--resume" not in str(caught.value)
        assert opened.tasks() == ()
        assert opened.runs() == ()


def test_a_good_encoding_passes(install: Install, registry: Registry, images: Path) -> None:
    install("good-plugin", "good", ENCODING.format(**GOOD))
    with Registry.open(registry.home) as opened:
        assert opened.add_task("task", "base", images, **QUICK, method="full", encoding="bad").encoding == "bad"


def test_a_trackers_mistake_names_its_package(install: Install, registry: Registry, images: Path) -> None:
    source = HEAD + "class Bad(Tracker):\n    name = 'bad'\n    summary = 's'\n    def follow(self, run): return 7\n"
    install("bad-plugin", "bad", source + "@hookimpl\ndef register_trackers(registrar): registrar.tracker(Bad())\n")
    with (
        Registry.open(registry.home) as opened,
        pytest.raises(TrainingError, match=r"The tracker 'bad' of bad-plugin 1\.0 could not start .* returned int"),
    ):
        opened.add_task("task", "base", images, **{**QUICK, "tracker": "bad"})


# Registration


BAD_PLUGINS = {
    "a class": (
        "@hookimpl\ndef register_methods(registrar): registrar.method(FixedSet)",
        "was given the class FixedSet",
    ),
    "something else": ("@hookimpl\ndef register_trackers(registrar): registrar.tracker('x')", "was given a str"),
    "the wrong kind": (
        "class A(Generic):\n    name='a'\n    summary='s'\n"
        "@hookimpl\ndef register_methods(registrar): registrar.method(A())",
        "an instance of Method, and was given a A",
    ),
    "no name": (
        "class A(Generic): pass\nA.name = ''\n@hookimpl\ndef register_architectures(registrar): "
        "registrar.architecture(A())",
        "the name of its architecture A must be one line of text",
    ),
    "no summary": (
        "class A(FixedSet):\n    name='a'\n    def tensors(self, *given): return ()\n"
        "@hookimpl\ndef register_methods(registrar): registrar.method(A())",
        "the summary of its method A must be",
    ),
    "an odd name": (
        "class A(Generic):\n    name='a/b'\n@hookimpl\ndef register_architectures(registrar): "
        "registrar.architecture(A())",
        "is called 'a/b'",
    ),
    "one name for models": (
        "class A(Generic):\n    name='a'\n    models='mine'\n@hookimpl\n"
        "def register_architectures(registrar): registrar.architecture(A())",
        "must be a set of names, not one",
    ),
    "an unknown hook": ("@hookimpl\ndef register_method(registrar): pass", "implements register_method, but the hooks"),
    "no hook": ("def register_methods(registrar): pass", "it implements no hook"),
    "timm's model": (
        "class A(Generic):\n    name='a'\n    models=('resnet18',)\n@hookimpl\n"
        "def register_architectures(registrar): registrar.architecture(A())",
        "it builds resnet18",
    ),
    "an import error": ("import no_such_module", "ModuleNotFoundError"),
    "an error of its own": ("class Odd(BaseException): pass\nraise Odd('first\\nsecond')", "failed: Odd: first"),
}


OPTIONS = {
    "no class": ("None", "its options are None, not a class that derives from Options"),
    "a default out of range": ("o(a=(int, option(0, 'A.', least=1)))", "the default of a must be at least 1, got 0"),
    "a default of another type": ("o(a=(str, option(3, 'A.')))", "the default of a must be text, got 3"),
    "no option": ("o(a=(int, 3))", "a is declared without option()"),
    "no help": ("o(a=(int, option(3, '')))", "a needs a help of one line"),
    "nothing known on resume": (
        "o(a=(int, option(3, 'A.', on_resume='maybe')))",
        "on_resume of a must be one of",
    ),
    "a name of every method": ("o(epochs=(int, option(3, 'A.')))", "epochs is an option of every method"),
    "no dataclass": ("type('O', (Options,), {'a': option(3, 'A.')})", "O lacks @dataclass"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_declared_wrong_are_the_plugins_mistake(install: Install, name: str) -> None:
    declared, reason = OPTIONS[name]
    source = "from dataclasses import make_dataclass\ndef o(**f): return make_dataclass('O', "
    source += "[(n, t, d) for n, (t, d) in f.items()], bases=(Options,), frozen=True)\n"
    source += f"class A(FixedSet):\n    name='a'\n    summary='s'\n    options={declared}\n"
    source += "    def tensors(self, *given): return ()\n"
    install("bad-plugin", "bad", HEAD + source + "@hookimpl\ndef register_methods(registrar): registrar.method(A())")
    info = next(info for info in PluginManager().plugins() if info.name == "bad")
    assert info.state.startswith("failed: the options of its method a are wrong: ")
    assert reason in info.state


@pytest.mark.parametrize("name", BAD_PLUGINS)
def test_a_plugin_that_cannot_be_registered_is_listed_with_the_reason_and_harms_nobody(
    install: Install, name: str
) -> None:
    source, reason = BAD_PLUGINS[name]
    install("bad-plugin", "bad", HEAD + source)
    manager = PluginManager()
    info = next(info for info in manager.plugins() if info.name == "bad")
    assert info.state.startswith("failed: ")
    assert reason in info.state
    assert info.distribution == "bad-plugin"
    assert manager.method("taps").name == "taps"
    assert issubclass(PluginError, TapsError)


OWN_MODEL = (
    HEAD
    + """
from torch import nn
import torch

class Tiny(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.scale = float(torch.linspace(0, 1, 3).sum())  # there are no values on the meta device
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, num_classes)
        self.pretrained_cfg = {"input_size": (3, 32, 32), "classifier": "head"}
    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)) * self.scale)

class Own(Generic):
    name = "own"
    fallback = False
    models = ("tiny",)
    def matches(self, model):
        return isinstance(model, Tiny)
    def build(self, model, arguments):
        return Tiny(arguments.get("num_classes", 2))

@hookimpl
def register_architectures(registrar):
    registrar.architecture(Own())
"""
)


def test_a_model_that_cannot_be_built_on_the_meta_device_is_built_on_the_cpu_and_says_so(
    install: Install, tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install("own-plugin", "own", OWN_MODEL)
    with caplog.at_level(logging.WARNING), Registry.init(tmp_path / "home") as registry:
        registry.add_base("base", "tiny", random_init=True)
        assert registry.add_task("task", "base", images, **QUICK, method="full").state == "ready"
        assert registry.predict("task", [next(images.rglob("*.png"))])
    notes = {record.getMessage() for record in caplog.records if record.name.startswith("taps_registry")}
    assert any("'own' of own-plugin 1.0" in note and "was built on the CPU" in note for note in notes), notes
