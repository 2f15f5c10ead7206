"""A stored task in another encoding, and the encoding that is chosen for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taps_registry import Registry
from taps_registry.cli.main import _run
from taps_registry.cli.session import Session
from taps_registry.plugins.encodings.integers import Int4
from taps_registry.registry import recoding
from taps_registry.registry.errors import BudgetError, BusyError, DataError, NotFoundError, PluginError, SettingsError
from taps_registry.registry.models.bases import load
from taps_registry.registry.records import Task
from taps_registry.registry.store.packed import open_packed
from taps_registry.registry.store.recoder import Recoder
from taps_registry.testing.home import QUICK, Listener, add, images_in, registry_with_base


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry and its images, which nobody changes: ``full``, ``lora`` and both rounded, on one base."""
    folder = tmp_path_factory.mktemp("trained")
    with registry_with_base(folder, "test_resnet", 32, {}) as registry:
        for name, settings in {
            "full": {"method": "full"},
            "lora": {"method": "lora", "rank": 2},
            "rounded": {"method": "full", "encoding": "int4"},
            "rounded-lora": {"method": "lora", "rank": 2, "encoding": "int4"},
        }.items():
            add(registry, folder, name, **settings)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the registry; the images stay where they are."""
    shutil.copytree(trained / "home", tmp_path / "home")
    return tmp_path


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    with Registry.open(folder / "home") as opened:
        yield opened


def path_of(registry: Registry, digest: str) -> Path:
    return registry.home / "objects" / digest[:2] / f"{digest[2:]}.safetensors"


def header_of(registry: Registry, task: Task) -> dict[str, Any]:
    with open_packed(path_of(registry, task.digest)) as file:
        found: dict[str, Any] = json.loads(file.text)
    return found


def state(registry: Registry, name: str) -> dict[str, Tensor]:
    return registry.load(name, device="cpu").model.state_dict()


def load_base(registry: Registry) -> dict[str, Tensor]:
    return load_file(path_of(registry, registry.base("base").object))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A new version


def test_a_task_in_another_encoding_is_a_new_version_as_measured(registry: Registry) -> None:
    before, others = registry.task("full"), [state(registry, name) for name in ("lora", "rounded")]
    after = registry.recode("full", "int4")
    assert (before.version, after.version, after.encoding) == (1, 2, "int4")
    assert after.bytes == path_of(registry, after.digest).stat().st_size < 0.25 * before.bytes
    assert (after.params, after.run, after.classes, after.method) == (
        before.params,
        before.run,
        before.classes,
        before.method,
    )
    assert after.settings == {**before.settings, "encoding": "int4"}
    assert set(after.metrics) == {"val/accuracy", "val/loss", "test/accuracy", "test/loss"}
    assert after.metrics["test/loss"] != before.metrics["test/loss"]
    assert all(same(one, state(registry, name)) for one, name in zip(others, ("lora", "rounded"), strict=True))
    assert registry.verify(deep=True) == ()


@pytest.mark.parametrize(("exact", "rounded"), [("full", "rounded"), ("lora", "rounded-lora")])
def test_it_is_the_file_that_training_would_have_written_in_that_encoding(
    registry: Registry, exact: str, rounded: str
) -> None:
    before, trained_so = registry.task(exact), registry.task(rounded)
    after = registry.recode(exact, "int4")
    assert after.digest == trained_so.digest
    assert after.bytes < before.bytes
    assert after.metrics == trained_so.metrics
    assert [(layer.name, layer.bytes, layer.params) for layer in registry.task(exact).layers] == [
        (layer.name, layer.bytes, layer.params) for layer in trained_so.layers
    ]


def test_the_same_values_keep_their_metrics_without_the_images(registry: Registry, trained: Path) -> None:
    before, values = registry.task("full"), state(registry, "full")
    listener = Listener()
    hidden = images_in(trained)
    hidden.rename(trained / "elsewhere")
    try:
        after = registry.recode("full", "fp32+zstd", progress=listener)
    finally:
        (trained / "elsewhere").rename(hidden)
    assert (after.metrics, after.version) == (before.metrics, 2)
    assert after.bytes < before.bytes
    assert same(values, state(registry, "full"))
    assert listener.notes == []
    assert registry.recode("full", "fp32").digest == before.digest


def test_low_rank_factors_are_put_into_fewer_bits_and_never_into_more(registry: Registry) -> None:
    before, values = registry.task("lora"), state(registry, "lora")
    factors = {
        name for name, entry in header_of(registry, before)["tensors"].items() if entry["encoding"] == "low-rank"
    }
    eight = registry.recode("lora", "int8")
    forms = {name: entry["encoding"] for name, entry in header_of(registry, eight)["tensors"].items()}
    assert {name for name in forms if forms[name] == "low-rank-int8"} == factors
    assert eight.bytes < before.bytes / 2
    assert (eight.params, eight.metrics.keys()) == (before.params, before.metrics.keys())
    found = state(registry, "lora")
    base = load_base(registry)
    for name in factors:
        delta, kept = values[name] - base[name], found[name] - base[name]
        assert not torch.equal(delta, kept), name
        assert (delta - kept).norm() < 0.02 * delta.norm(), name
    wide = registry.recode("lora", "fp32")
    assert same(state(registry, "lora"), found)
    kept_forms = {name: entry["encoding"] for name, entry in header_of(registry, wide)["tensors"].items()}
    assert {name for name in kept_forms if kept_forms[name] == "low-rank-int8"} == factors
    four = registry.recode("lora", "int4")
    assert four.bytes < eight.bytes
    again = header_of(registry, registry.recode("lora", "int8"))["tensors"]
    assert {name for name in again if again[name]["encoding"] == "low-rank-int4"} == factors
    assert registry.verify(deep=True) == ()


def test_factors_stay_as_they_are_in_an_encoding_that_has_nothing_smaller(registry: Registry) -> None:
    before = header_of(registry, registry.task("lora"))["tensors"]
    after = header_of(registry, registry.recode("lora", "bf16"))["tensors"]
    assert {name for name in before if before[name]["encoding"] == "low-rank"}
    for name, entry in before.items():
        wanted = "bf16-values" if entry["part"] == "norms" and entry["dtype"] == "float32" else entry["encoding"]
        assert after[name] == {**entry, "encoding": wanted}, name


def test_an_encoding_that_names_no_form_of_factors_is_refused_before_training(
    registry: Registry, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Int4, "low_rank_form", "int8")
    with pytest.raises(PluginError, match=r"^int4 puts factors into 'int8', which is not a LowRankForm\.$"):
        add(registry, trained, "task", method="lora", encoding="int4")
    assert "task" not in {task.name for task in registry.tasks()}


@pytest.mark.parametrize("settings", [{"method": "taps", "norms": "frozen"}, {"method": "vmt-adapter", "rank": 4}])
def test_rows_of_tensors_and_added_modules_are_written_anew_too(tmp_path: Path, settings: dict[str, Any]) -> None:
    with registry_with_base(tmp_path, "test_vit", 32, {"img_size": 32, "patch_size": 8}) as registry:
        before = add(registry, tmp_path, "task", **settings)
        entries = header_of(registry, before)["tensors"]
        values = state(registry, "task")
        after = registry.recode("task", "fp16")
        assert (after.params, after.set) == (before.params, before.set)
        assert registry.verify(deep=True) == ()
        added = {name for name in entries if entries[name]["encoding"] == "" and entries[name]["part"] == "weights"}
        matrices = {name for name in entries if len(entries[name]["shape"]) > 1} - added
        assert any("[" in name for name in matrices) == (settings["method"] == "taps")
        found = header_of(registry, after)["tensors"]
        assert all(found[name] == entries[name] for name in entries if entries[name]["part"] == "head")
        assert all(found[name]["encoding"] == "fp16" for name in matrices if entries[name]["part"] == "weights")
        rounded = state(registry, "task")
        assert rounded.keys() == values.keys()
        for name in values:
            torch.testing.assert_close(rounded[name], values[name], rtol=2**-8, atol=1e-4)


def test_what_was_rounded_stays_rounded_and_that_is_said(registry: Registry) -> None:
    values, before, listener = state(registry, "rounded"), registry.task("rounded"), Listener()
    after = registry.recode("rounded", "fp32", progress=listener)
    assert same(values, state(registry, "rounded"))
    assert after.metrics == before.metrics
    assert after.bytes > before.bytes
    assert listener.notes == [
        "int4 has rounded 'rounded', and fp32 stores the rounded values: precision lost earlier cannot be recovered."
    ]


@pytest.mark.parametrize("name", ["int4", "svd", "bf16"])
def test_compressing_rounds_nothing_again(registry: Registry, name: str) -> None:
    first, values = registry.recode("full", name), state(registry, "full")
    packed = registry.recode("full", f"{name}+zstd")
    assert (packed.encoding, packed.metrics) == (f"{name}+zstd", first.metrics)
    assert same(values, state(registry, "full"))
    assert registry.recode("full", name).digest == first.digest


def test_the_encoding_that_it_is_in_already_changes_nothing(registry: Registry) -> None:
    listener, before = Listener(), registry.task("full")
    assert registry.recode("full", "fp32", progress=listener) == before
    assert listener.notes == [f"'full' is already stored in fp32 ({before.bytes:,} bytes); it was not changed."]


# Images that are gone, or others


def test_without_the_images_the_accuracy_is_not_known(registry: Registry, trained: Path) -> None:
    listener = Listener()
    (images_in(trained)).rename(trained / "elsewhere")
    try:
        with pytest.raises(DataError):
            registry.recode("full", "auto")
        after = registry.recode("full", "bf16", progress=listener)
    finally:
        (trained / "elsewhere").rename(images_in(trained))
    assert after.metrics == {}
    assert (len(listener.notes), "was not measured; `taps-registry evaluate full --data DIR`" in listener.notes[0]) == (
        1,
        True,
    )


def test_other_images_are_not_measured_on(registry: Registry, trained: Path) -> None:
    listener, extra = Listener(), images_in(trained) / "dark" / "extra.png"
    shutil.copy(images_in(trained) / "dark" / "0.png", extra)
    try:
        after = registry.recode("full", "bf16", progress=listener)
    finally:
        extra.unlink()
    assert after.metrics == {}
    assert "are not those that 'full' was trained with. So the accuracy" in listener.notes[0]


# Budgets, gc, verify, remove


def test_only_the_current_version_counts(registry: Registry) -> None:
    registry.set_budget(base="base", max_bytes=10**9)
    others = sum(task.bytes for task in registry.tasks() if task.name != "full")
    after = registry.recode("full", "int3")
    (use,) = registry.budgets()
    assert use.used_bytes == others + after.bytes
    (cost,) = registry.cost(["full"], by="layer").bases
    assert cost.tasks[0].bytes == after.bytes
    assert sum(row.task_bytes for row in cost.by) < after.bytes


def test_a_larger_version_has_to_fit_and_a_smaller_one_always_does(registry: Registry) -> None:
    used = sum(task.bytes for task in registry.tasks())
    registry.set_budget(base="base", max_bytes=used - 1)
    before = registry.task("rounded")
    with pytest.raises(BudgetError, match=r"exceeded by [\d,]+ bytes: .*'rounded' needs another [\d,]+\."):
        registry.recode("rounded", "fp32")
    assert registry.task("rounded") == before
    assert registry.recode("full", "int4").version == 2
    assert registry.recode("rounded", "fp16").version == 2


def test_gc_takes_the_file_of_the_earlier_version_and_keeps_its_row(registry: Registry) -> None:
    before = registry.task("full")
    after = registry.recode("full", "int8")
    assert registry.verify(deep=True) == ()
    found = registry.gc()
    assert f"object {before.digest}" in found.removed
    assert found.bytes >= before.bytes
    assert not path_of(registry, before.digest).exists()
    assert path_of(registry, after.digest).exists()
    assert registry.verify(deep=True) == ()
    assert registry.gc().removed == ()
    assert registry.recode("full", "fp32").version == 3
    registry.remove("full")
    registry.gc()
    assert not path_of(registry, after.digest).exists()
    assert registry.verify(deep=True) == ()


def test_gc_keeps_a_file_that_is_current_for_another_task(registry: Registry) -> None:
    first = registry.recode("full", "int4")
    assert first.digest == registry.task("rounded").digest
    registry.recode("rounded", "bf16")
    registry.gc()
    assert path_of(registry, first.digest).exists()
    assert registry.verify(deep=True) == ()


def test_nothing_is_published_over_a_task_that_changed_meanwhile(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        registry.recode("full", "bf16")
        return in_encoding(*arguments)

    in_encoding = Recoder.in_encoding
    monkeypatch.setattr(Recoder, "in_encoding", meanwhile)
    with pytest.raises(BusyError, match="was replaced in the meantime"):
        registry.recode("full", "int4")
    assert (registry.task("full").version, registry.task("full").encoding) == (2, "bf16")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("nobody", "int4"), NotFoundError, "nobody"),
        (("full", "int5"), PluginError, "no encoding 'int5'"),
        (("full", "low-rank"), PluginError, "no encoding 'low-rank'"),
    ],
)
def test_what_cannot_be_is_refused(
    registry: Registry, arguments: tuple[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        registry.recode(*arguments)
    assert registry.gc(dry_run=True).removed == ()


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_from_zero_upwards(registry: Registry, tolerance: float) -> None:
    with pytest.raises(SettingsError, match="--encoding-tolerance must be a finite number of at least 0"):
        registry.recode("full", "auto", encoding_tolerance=tolerance)
    with pytest.raises(SettingsError, match="--encoding-tolerance is for --encoding auto"):
        registry.recode("full", "int4", encoding_tolerance=1.0)


# auto


def test_auto_takes_the_smallest_of_all_where_any_accuracy_will_do(registry: Registry, tmp_path: Path) -> None:
    source, context = path_of(registry, registry.task("full").digest), registry._context
    base = load(context, registry.base("base"))
    names = [name + end for name in context.plugins.encodings() for end in ("", "+zstd")]
    recoder = Recoder(source, tmp_path, base.tensors, context.plugins)
    sizes = {name: recoder.in_encoding(name).size for name in names}
    after = registry.recode("full", "auto", encoding_tolerance=100.0)
    assert (len(sizes), after.bytes, sizes[after.encoding]) == (14, min(sizes.values()), after.bytes)
    assert registry.recode("full", after.encoding) == after


def test_auto_of_exact_values_only_is_exact(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every rounded file is worse, what is left is the smallest exact one."""
    measured: list[str] = []

    def worse(path: Path, *arguments: Any) -> dict[str, float]:
        measured.append(path.name)
        return {"val/accuracy": 0.1 * (len(measured) == 1)}

    monkeypatch.setattr(recoding, "measure_artifact", worse)
    values, before = state(registry, "full"), registry.task("full")
    after = registry.recode("full", "auto", encoding_tolerance=0.0)
    assert after.encoding == "fp32+zstd"
    assert after.metrics == before.metrics
    assert same(values, state(registry, "full"))
    assert len(measured) == 7


def test_what_auto_may_lose_is_counted_from_the_first_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of several recodings could lose it once more."""
    first, lost = registry.task("full").metrics["val/accuracy"], {"int8": 0.03, "int4": 0.06}

    def measured(path: Path, *arguments: Any) -> dict[str, float]:
        encoding = path.name.partition(".")[0].removesuffix("+zstd")
        return {"val/accuracy": first - lost.get(encoding, 0.2)}

    monkeypatch.setattr(recoding, "measure_artifact", measured)
    assert registry.recode("full", "int8").metrics["val/accuracy"] == first - 0.03
    after = registry.recode("full", "auto", encoding_tolerance=4.0)
    assert after.encoding.removesuffix("+zstd") == "int8"
    assert registry.recode("full", "auto", encoding_tolerance=6.0).encoding.removesuffix("+zstd") == "int4"


def test_auto_in_training_takes_what_recode_would(folder: Path, trained: Path, registry: Registry) -> None:
    listener = Listener()
    settings = {**QUICK, "method": "full", "encoding": "auto", "encoding_tolerance": 100.0}
    said = registry.estimate("auto", "base", images_in(trained), **settings)
    assert said.encoding == "auto"
    assert said.most == registry.estimate("x", "base", images_in(trained), **QUICK, method="full").most
    task = registry.add_task("auto", "base", images_in(trained), progress=listener, **settings)
    recoded = registry.recode("full", "auto", encoding_tolerance=100.0)
    assert (task.encoding, task.digest, task.metrics) == (recoded.encoding, recoded.digest, recoded.metrics)
    assert len(listener.notes) == 1
    assert listener.notes[0].startswith(f"{task.encoding}: {task.bytes:,} bytes, ")
    assert task.settings["encoding"] == "auto"
    assert registry.verify(deep=True) == ()
    assert [path.name for path in registry.home.glob("runs/*/*") if path.suffix == ".safetensors"] == []


def test_the_command_line_says_what_it_came_to(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--home", str(registry.home), "recode", "full", "--encoding", "int4+zstd"]
    assert _run(words, Session()) == 0
    said = capfd.readouterr().err
    assert "Stored full in int4+zstd, version 2: " in said
    assert ": test accuracy " in said
    assert "Next: taps-registry gc" in said
    assert _run([*words, "--format", "json"], Session()) == 0
    found = capfd.readouterr()
    assert json.loads(found.out)["version"] == 2
    assert "it was not changed" in found.err
