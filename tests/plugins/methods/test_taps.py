"""TAPS against the paper's formulas, computed a second time with autograd on W0 + I(s) D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from taps_registry.plugins.architectures.generic import Generic
from taps_registry.plugins.methods import MethodSettings
from taps_registry.plugins.methods.gating import warmup_epochs
from taps_registry.plugins.methods.options import TapsOptions
from taps_registry.plugins.methods.taps import Taps, TapsAdaptation

SETTINGS = Taps.settings(epochs=1, lr=0.1, sparsity=3.0, threshold=0.1, weight_decay=0.0, penalty="uniform")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Double precision, so that two ways to compute the same thing agree closely."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def make(settings: MethodSettings = SETTINGS, model: str = "test_resnet") -> TapsAdaptation:
    built = timm.create_model(model, num_classes=3)
    adaptation = Taps().adapt(built, Generic().partition(built).check(built), settings)
    assert isinstance(adaptation, TapsAdaptation)
    adaptation.scores.penalised = True
    return adaptation


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 32, 32), torch.arange(size) % 3


def backward(adaptation: TapsAdaptation, images: Tensor, labels: Tensor) -> None:
    adaptation.model.eval()  # no running statistics: the reference below has none
    adaptation.model.zero_grad()
    functional.cross_entropy(adaptation.model(images), labels).backward()


class Gate01(torch.autograd.Function):
    """The paper's indicator: a step forward, the identity backward."""

    @staticmethod
    def forward(ctx: object, score: Tensor, threshold: float) -> Tensor:
        return (score >= threshold).to(score.dtype)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@dataclass
class Reference:
    """The usual implementation: effective weights composed in the forward pass."""

    model: nn.Module
    base: dict[str, Tensor]
    deltas: dict[str, Tensor]
    scores: Tensor
    gate_of: dict[str, int]
    settings: MethodSettings

    @classmethod
    def of(cls, adaptation: TapsAdaptation) -> Reference:
        base, deltas, gate_of = {}, {}, {}
        for index, gate in enumerate(adaptation.gates):
            for name, parameter in ((live.name, live.owner) for live in gate.trainable()):
                base[name] = gate.tensors[name].base.clone()
                now = gate.parked.get(name, parameter.detach())
                deltas[name] = (now - base[name]).requires_grad_()
                gate_of[name] = index
        scores = adaptation.scores.values.detach().clone().requires_grad_()
        return cls(adaptation.model, base, deltas, scores, gate_of, adaptation.settings)

    def effective(self) -> dict[str, Tensor]:
        threshold = self.settings.options.threshold
        return {
            name: self.base[name] + Gate01.apply(self.scores[self.gate_of[name]], threshold) * delta
            for name, delta in self.deltas.items()
        }

    def backward(self, images: Tensor, labels: Tensor) -> None:
        self.scores.grad = None
        for delta in self.deltas.values():
            delta.grad = None
        loss = functional.cross_entropy(functional_call(self.model, self.effective(), (images,)), labels)
        count = len(self.scores)
        (loss + self.settings.options.sparsity / count * self.scores.abs().sum()).backward()


def step(adaptation: TapsAdaptation, lr: float) -> None:
    """Plain gradient descent on the gated layers and their scores."""
    with torch.no_grad():
        for gate in adaptation.gates:
            for parameter in (live.owner for live in gate.trainable()):
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
        assert adaptation.scores.values.grad is not None
        adaptation.scores.values -= lr * adaptation.scores.values.grad
    adaptation.after_step()


def with_deltas(adaptation: TapsAdaptation, closed: tuple[int, ...]) -> None:
    """Give every layer a delta and close some gates, one of them with a negative score."""
    with torch.no_grad():
        for gate in adaptation.gates:
            for parameter in (live.owner for live in gate.trainable()):
                parameter += 0.1 * torch.randn_like(parameter)
        for index in closed:
            adaptation.scores.values[index] = -0.05 if index % 2 else 0.05
    adaptation.after_step()
    assert [i for i, gate in enumerate(adaptation.gates) if not gate.open] == sorted(closed)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_score_gradients_are_those_of_autograd_for_open_and_closed_gates(model: str) -> None:
    adaptation = make(model=model)
    with_deltas(adaptation, closed=(1, 2, 5))
    reference, (images, labels) = Reference.of(adaptation), batch()
    backward(adaptation, images, labels)
    adaptation.before_step(lr=0.0)
    reference.backward(images, labels)
    torch.testing.assert_close(adaptation.scores.values.grad, reference.scores.grad, rtol=1e-9, atol=1e-12)
    assert adaptation.scores.values.grad is not None
    assert adaptation.scores.values.grad[1].abs() > 1e-6  # a closed gate sees <G, D> still


def test_delta_gradients_are_those_of_autograd_and_dropped_where_the_gate_is_closed() -> None:
    adaptation = make()
    with_deltas(adaptation, closed=(0, 3))
    reference, (images, labels) = Reference.of(adaptation), batch()
    backward(adaptation, images, labels)
    adaptation.before_step(lr=0.0)
    reference.backward(images, labels)
    for gate in adaptation.gates:
        for name, parameter in ((live.name, live.owner) for live in gate.trainable()):
            expected = reference.deltas[name].grad
            if gate.open:
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
            else:
                assert parameter.grad is None
                assert expected is not None
                assert not expected.any()


def test_many_steps_follow_the_reference_while_gates_close_and_reopen() -> None:
    adaptation = make()
    reference, lr, seen = Reference.of(adaptation), 0.02, []
    images, labels = batch()
    for number in range(12):
        options = TapsOptions(sparsity=9.0 if number < 6 else -16.0, penalty="uniform")
        adaptation.scores.settings = reference.settings = MethodSettings(options)
        backward(adaptation, images, labels)
        adaptation.before_step(lr=0.0)
        reference.backward(images, labels)
        step(adaptation, lr)
        with torch.no_grad():
            for value in (reference.scores, *reference.deltas.values()):
                assert value.grad is not None
                value -= lr * value.grad
        seen.append(tuple(gate.open for gate in adaptation.gates))
        torch.testing.assert_close(adaptation.scores.values.detach(), reference.scores.detach(), rtol=1e-7, atol=1e-9)
        for name, expected in reference.effective().items():
            torch.testing.assert_close(adaptation.model.get_parameter(name), expected, rtol=1e-7, atol=1e-9)
    assert all(seen[0]), "the gates did not begin open: the test shows nothing"
    assert not any(seen[5]), "the gates did not close: the test shows nothing"
    assert all(seen[-1]), "the gates did not reopen: the test shows nothing"


def test_a_closed_gate_computes_with_the_base_to_the_last_bit_and_reopens_to_the_last_bit() -> None:
    torch.set_default_dtype(torch.float32)
    adaptation = make()
    before = {name: tensor.clone() for name, tensor in adaptation.model.state_dict().items()}
    with_deltas(adaptation, closed=())
    trained = {name: tensor.clone() for name, tensor in adaptation.model.state_dict().items()}
    gate = adaptation.gates[4]
    with torch.no_grad():
        adaptation.scores.values[4] = 0.0
    adaptation.after_step()
    for name in gate.tensors:
        assert torch.equal(adaptation.model.state_dict()[name], before[name])
    assert gate.layers[0].name not in {state.name for state in adaptation.layer_states() if state.open}
    with torch.no_grad():
        adaptation.scores.values[4] = 0.1
    adaptation.after_step()
    for name in gate.tensors:
        assert torch.equal(adaptation.model.state_dict()[name], trained[name])


def test_the_penalty_is_lambda_over_the_true_number_of_gates() -> None:
    adaptation = make()
    images, labels = batch()
    backward(adaptation, images, labels)
    adaptation.before_step(lr=0.0)
    assert adaptation.scores.values.grad is not None
    # no delta yet, so <G, D> is zero and the gradient is the penalty's alone
    assert adaptation.scores.values.grad.tolist() == pytest.approx(
        [3.0 / len(adaptation.gates)] * len(adaptation.gates)
    )
    assert adaptation.penalty() == pytest.approx(3.0 * 0.15)


def test_without_the_penalty_no_score_moves_before_there_is_a_delta() -> None:
    adaptation = make(Taps.settings(sparsity=0.0))
    backward(adaptation, *batch())
    adaptation.before_step(lr=0.0)
    assert adaptation.scores.values.grad is not None
    assert not adaptation.scores.values.grad.any()


def test_the_penalty_waits_for_a_tenth_of_the_epochs() -> None:
    adaptation = make(Taps.settings(epochs=30))
    strengths = []
    for epoch in range(5):
        adaptation.start_epoch(epoch)
        strengths.append(adaptation.penalty() > 0)
    assert strengths == [False, False, False, True, True]
    assert [warmup_epochs(epochs) for epochs in (1, 8, 12, 30)] == [1, 1, 2, 3]


def test_decay_pulls_open_layers_towards_the_base_and_leaves_closed_ones_alone() -> None:
    adaptation = make(Taps.settings(weight_decay=0.5))
    with_deltas(adaptation, closed=(0,))
    before = Reference.of(adaptation)
    effective = {name: value.detach().clone() for name, value in before.effective().items()}
    backward(adaptation, *batch())
    adaptation.before_step(lr=0.1)
    for index, gate in enumerate(adaptation.gates):
        for name, parameter in ((live.name, live.owner) for live in gate.trainable()):
            expected = (
                gate.tensors[name].base
                if index == 0
                else effective[name] - 0.05 * (effective[name] - gate.tensors[name].base)
            )
            torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_momentum_does_not_move_a_layer_whose_gate_is_closed(optimiser: type[torch.optim.Optimizer]) -> None:
    adaptation = make()
    options = {"momentum": 0.9} if optimiser is torch.optim.SGD else {}
    made = optimiser(adaptation.parameter_groups(), lr=0.01, **options)
    for number in range(3):
        backward(adaptation, *batch())
        if number == 1:
            with torch.no_grad():
                adaptation.scores.values[2] = 0.0
            adaptation.after_step()
        adaptation.before_step(lr=0.0)
        made.step()
    gate = adaptation.gates[2]
    assert not gate.open
    assert all(torch.equal(live.value, live.base) for live in gate.tensors.values())
    assert any(not torch.equal(live.value, live.base) for live in adaptation.gates[3].tensors.values())


def test_norms_of_the_task_are_stored_whatever_the_gates_say() -> None:
    adaptation = make()
    with_deltas(adaptation, closed=tuple(range(len(adaptation.gates))))
    expected = {*adaptation.partition.norm_tensors(), *adaptation.partition.head}
    assert adaptation.stored().tensors == expected
    assert Taps().least(adaptation.model, adaptation.partition, SETTINGS).tensors == expected


def test_frozen_norms_keep_the_bases_statistics_and_are_not_stored() -> None:
    adaptation = make(Taps.settings(norms="frozen"))
    before = {name: t.clone() for name, t in adaptation.model.state_dict().items() if "running" in name}
    adaptation.train()
    adaptation.model(torch.randn(4, 3, 32, 32))
    assert before
    assert all(torch.equal(adaptation.model.state_dict()[name], t) for name, t in before.items())
    assert not adaptation.stored().tensors.intersection(adaptation.partition.norm_tensors())


def test_gated_norms_have_a_gate_each_and_use_the_bases_statistics_while_it_is_closed() -> None:
    adaptation = make(Taps.settings(norms="gated"))
    assert len(adaptation.gates) == len(adaptation.partition.layers) + len(adaptation.partition.norms)
    gate = next(gate for gate in adaptation.gates if gate.layers[0].kind == "norm")
    module, index = adaptation.model.get_submodule(gate.layers[0].name), adaptation.gates.index(gate)
    adaptation.train()
    adaptation.model(torch.randn(4, 3, 32, 32))
    moved = module.running_mean.clone()
    assert not torch.equal(moved, gate.tensors[f"{gate.layers[0].name}.running_mean"].base)
    with torch.no_grad():
        adaptation.scores.values[index] = 0.0
    adaptation.after_step()
    adaptation.model(torch.randn(4, 3, 32, 32))
    assert not module.training
    assert torch.equal(module.running_mean, gate.tensors[f"{gate.layers[0].name}.running_mean"].base)
    with torch.no_grad():
        adaptation.scores.values[index] = 0.2
    adaptation.after_step()
    assert module.training
    assert torch.equal(module.running_mean, moved)


def test_a_saved_state_brings_back_scores_gates_and_parked_weights() -> None:
    adaptation = make()
    with_deltas(adaptation, closed=(1, 4))
    fresh = make()
    fresh.model.load_state_dict(adaptation.model.state_dict())
    fresh.load_state_dict(adaptation.state_dict())
    assert [gate.open for gate in fresh.gates] == [gate.open for gate in adaptation.gates]
    assert torch.equal(fresh.scores.values, adaptation.scores.values)
    for ours, theirs in zip(fresh.gates, adaptation.gates, strict=True):
        assert ours.parked.keys() == theirs.parked.keys()
        assert all(torch.equal(ours.parked[name], theirs.parked[name]) for name in theirs.parked)
