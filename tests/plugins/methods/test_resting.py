"""The first half of a transformer's layers, which rests in the last part of a run of ``taps-rank``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from taps_registry.plugins.architectures import Layer, Partition
from taps_registry.plugins.manager import PluginManager
from taps_registry.plugins.methods.limits import Limit
from taps_registry.plugins.methods.taps_rank import RankAdaptation, TapsRank, first_half
from taps_registry.registry.training.optimisation import Optimisation

STEPS = 20


def partition_of(model: nn.Module) -> Partition:
    plugins = PluginManager()
    return plugins.partition(plugins.architecture_for(model), model)


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("vit_small_patch16_224", "blocks.6.norm1.weight"),
        ("swin_tiny_patch4_window7_224", "layers.2.blocks.1.norm1.weight"),
        ("beit_base_patch16_224", "blocks.6.norm1.weight"),
        ("cait_xxs24_224", "blocks.13.norm1.weight"),
    ],
)
def test_the_second_half_begins_with_the_block_of_the_middle_layer(name: str, begins: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3)
    half, names = first_half(model, partition_of(model)), [name for name, _ in model.named_parameters()]
    assert half == set(names[: names.index(begins)])


@pytest.mark.parametrize("order", ["head, body", "body, head"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_neither_heads_nor_a_single_layer_are_of_the_first_half(order: str, layers: int) -> None:
    body = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
    parts = {"body": body, "head": nn.Linear(4, 2)}
    model = nn.ModuleDict({name: parts[name] for name in order.split(", ")})
    made = tuple(
        Layer(name, "linear", (f"{name}.weight",), block=name) for name in map("body.{}".format, range(layers))
    )
    partition = Partition(made, (), ("head.weight", "head.bias")).check(model)
    wanted = [f"body.{index}.weight" for index in range((layers + 1) // 2 if layers > 1 else 0)]
    assert first_half(model, partition) == (set(wanted) if order == "body, head" else set())


class Run:
    """Steps of ``taps-rank`` as the loop takes them, on random pictures."""

    def __init__(self, name: str, **told: object) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=3)
        self.half = first_half(self.model, partition_of(self.model))
        settings = TapsRank.settings(limits=(Limit(40_000, {}),), weight_decay=0.05, **told)
        self.adaptation = RankAdaptation(self.model, partition_of(self.model), settings)
        groups = self.adaptation.parameter_groups()
        self.optimisation = Optimisation(groups, [], 1e-2, STEPS, Accelerator(cpu=True))
        self.taken = 0
        for done in (0.0, 0.0, 0.5, 0.5):
            self.step(done)
        assert self.adaptation.units

    def gradients(self) -> dict[str, Tensor]:
        """Those of the next step, by name; of factors, too."""
        pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(self.taken))
        functional.cross_entropy(self.model(pictures), torch.tensor([0, 1, 2, 0])).backward()
        self.adaptation.after_backward()
        return {name: value.grad.clone() for name, value in self.trained().items() if value.grad is not None}

    def trained(self) -> dict[str, nn.Parameter]:
        """Factors by the name of their weight, and what trains beside them."""
        units = self.adaptation.units
        factors = {f"{unit.live.name} {name}": value for unit in units for name, value in unit.factors.items()}
        weights = {id(unit.live.owner) for unit in units}
        plain = {name: value for name, value in self.model.named_parameters() if id(value) not in weights}
        return {**plain, **factors}

    def step(self, done: float) -> bool:
        told = self.adaptation.start_step(done)
        if told:
            self.optimisation.follow(self.adaptation, self.taken)
        self.optimisation.set_rates(self.taken)
        self.gradients()
        self.adaptation.before_step(1e-3)
        self.optimisation.step()
        self.adaptation.after_step()
        self.taken += 1
        return told

    def moved_by(self, step: Callable[[], object]) -> set[str]:
        before = {name: value.detach().clone() for name, value in self.trained().items()}
        step()
        return {name for name, value in self.trained().items() if not torch.equal(value, before[name])}

    def rests(self, name: str) -> bool:
        return name.split(" ")[0].split("[")[0] in self.half


@pytest.mark.parametrize("norms", ["task", "frozen"])
@pytest.mark.parametrize("name", ["test_vit", "test_vit4"])
def test_late_in_the_run_only_the_second_half_trains(name: str, norms: str) -> None:
    run = Run(name, norms=norms)
    early = run.moved_by(lambda: run.step(0.79))
    assert {run.rests(name) for name in early} == {True, False}
    for _ in range(2):
        assert run.moved_by(lambda: run.step(0.8)) == {name for name in early if not run.rests(name)}


@pytest.mark.parametrize("norms", ["task", "frozen"])
@pytest.mark.parametrize("name", ["test_vit", "test_vit4"])
def test_what_trains_on_has_the_gradients_it_would_have_had(name: str, norms: str) -> None:
    run = Run(name, norms=norms)
    usual = run.gradients()
    run.optimisation.weights.zero_grad()
    assert run.adaptation.start_step(0.8)
    for _ in range(2):
        late = run.gradients()
        run.optimisation.weights.zero_grad()
        assert late.keys() == {name for name in usual if not run.rests(name)}
        for name, gradient in late.items():
            torch.testing.assert_close(gradient, usual[name], rtol=1e-3, atol=1e-5 * float(usual[name].abs().max()))


def test_other_models_train_as_a_whole_to_the_end() -> None:
    run = Run("test_resnet")
    early = run.moved_by(lambda: run.step(0.5))
    assert {run.rests(name) for name in early} == {True, False}
    assert run.moved_by(lambda: run.step(1.0)) == early


@pytest.mark.parametrize("norms", ["task", "frozen"])
def test_the_backward_pass_ends_before_the_first_half(norms: str) -> None:
    run, reached = Run("test_vit", norms=norms), []
    for index, block in enumerate(run.model.blocks):
        block.register_forward_hook(
            lambda module, given, output, index=index: reached.append((index, output.requires_grad))
        )
    for done in (0.79, 0.8, 0.8):
        reached.clear()
        run.step(done)
    assert reached == [(index, index >= len(run.model.blocks) // 2) for index in range(len(run.model.blocks))]


def test_the_optimiser_is_told_and_forgets_what_rests() -> None:
    run = Run("test_vit")
    run.step(0.5)
    known = run.optimisation.weights.optimizer.state
    plain = [name for name in run.trained() if " " not in name and run.rests(name)]
    assert plain
    assert any(run.trained()[name] in known for name in plain)
    assert [run.step(0.8) for _ in range(3)] == [True, False, False]
    assert not any(run.trained()[name] in known for name in plain)


def test_a_run_that_has_more_before_it_trains_all_of_it_again() -> None:
    run = Run("test_vit")
    early = run.moved_by(lambda: run.step(0.5))
    run.step(0.8)
    assert run.moved_by(lambda: run.step(0.5)) == early
    run.step(0.8)
    run.adaptation.begin_again()
    assert run.moved_by(lambda: run.step(0.0)) >= {name for name in early if " " not in name}
