"""The contract of a method, as tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from math import isfinite
from operator import is_ as same
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..plugins.architectures import Partition
from ..plugins.architectures.pieces import Pieces
from ..plugins.methods import Method, MethodSettings
from ..plugins.options import options_of
from .encodings import refuses, spoiled
from .models import copied, copy_of, differing, few, pieces_of, same_bits
from .rehearsal import Rehearsal, size_of
from .tasks import WholeWay


class MethodTests(WholeWay):
    """Subclass this, and name the method.

    Attributes:
        method: under test.
        settings: options of the method, or other values of ``MethodSettings``, by name.
        budget: ``--budget`` of the tasks that go the whole way; a method that steers towards limits should have one.
        refused: options that ``check`` must refuse.
        model: timm's name of a model that the method can adapt.
        arguments: of that model, as ``--model-arg`` gives them.
        pixels: height and width of images.
        rounding: how far a decoded weight may be from the one that the model computes with, as a share of the tensor's
            largest value. By default 128 roundings of 2^-24, for a sum of as many products in another order.
    """

    method: ClassVar[Method]
    settings: ClassVar[Mapping[str, Any]] = {}
    budget: ClassVar[str] = ""
    refused: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    model: ClassVar[str] = "test_resnet"
    arguments: ClassVar[Mapping[str, Any]] = {}
    pixels: ClassVar[int] = 32
    rounding: ClassVar[float] = 2**-17

    def method_settings(self, **others: Any) -> MethodSettings:
        """What the method is told, for two epochs."""
        return self.method.settings(**{"epochs": 2, **self.settings, **others})

    def base(self, settings: MethodSettings) -> tuple[nn.Module, Partition]:
        """A model with the base's weights, extended if the method does that, and its partition before that."""
        model = copy_of(self.model, self.arguments)
        partition = self.manager.partition(self.manager.architecture_for(model), model)
        arguments = self.method.extension(settings)
        if arguments:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.method.extend(model, arguments)
        return model, partition

    def rehearsal(self, epochs: int = 0, scale: float = 1.0, **others: Any) -> Rehearsal:
        """The method on a fresh base, after so many epochs."""
        settings = self.method_settings(**others)
        rehearsal = Rehearsal(self.method, *self.base(settings), settings, self.pixels, scale)
        for epoch in range(epochs):
            rehearsal.epoch(epoch)
        return rehearsal

    def of_base(self) -> dict[str, Tensor]:
        """Tensors of the base, and rows of them as the partition names them; whole ones as well."""
        model, partition = self.base(self.method_settings())
        tensors = copied(model)
        return {**tensors, **pieces_of(partition, tensors)}

    # Before training

    def test_it_has_a_name_and_a_summary(self) -> None:
        assert self.method.name, "a method has a name"
        assert self.method.summary, "a method says in a line what it stores"
        assert "\n" not in self.method.summary, "the summary is one line"

    def test_its_options_are_declared_with_help_and_a_default_that_makes_sense(self) -> None:
        known = options_of(self.method.options)
        undeclared = {field.name for field in fields(self.method.options)} - set(known)
        assert not undeclared, f"these are declared without option(): {few(undeclared)}"
        for name, declared in known.items():
            assert declared.help, f"{name} has no help"
            assert "\n" not in declared.help, f"the help of {name} is one line"
        self.method.options.of({})

    def test_values_outside_of_an_options_range_are_refused(self) -> None:
        for name, declared in options_of(self.method.options).items():
            wrong: list[Any] = [object()] + ["neither of them"] * bool(declared.choices)
            wrong += [bound - 1 for bound in (declared.least, declared.above) if bound is not None]
            wrong += [declared.most + 1] if declared.most is not None else []
            for value in wrong:
                assert self._refuses({name: value}), f"{name} takes {value!r}"
        assert self._refuses({"no_such_option": 1}), "an option that there is not is taken"

    def _refuses(self, given: Mapping[str, Any]) -> bool:
        try:
            self.method.options.of(given)
        except ValueError:
            return True
        return False

    def test_it_refuses_what_it_cannot_work_with_by_a_value_error(self) -> None:
        self.method.check(self.method_settings())  # of what it can work with, it says nothing
        for options in self.refused:
            refusal = None
            try:
                self.method.check(self.method_settings(**options))
            except ValueError as error:
                refusal = str(error)
            assert refusal is not None, f"check() takes {dict(options)}, which is to be refused"
            assert refusal, f"check() refuses {dict(options)} without a word to the user"

    def test_asking_what_it_would_store_changes_nothing(self) -> None:
        model, partition = self.base(self.method_settings())
        before, asked = copied(model), [parameter.requires_grad for parameter in model.parameters()]
        for ask in (self.method.least, self.method.most):
            first, second = (ask(model, partition, self.method_settings()) for _ in range(2))
            assert first == second, f"{ask.__name__}() answers otherwise when it is asked again"
            assert not differing(before, copied(model)), f"{ask.__name__}() writes to the model"
            trains = [parameter.requires_grad for parameter in model.parameters()]
            assert trains == asked, f"{ask.__name__}() makes the model trainable; that is for adapt()"

    # While it trains

    def test_what_is_stored_lies_between_least_and_most(self) -> None:
        model, partition = self.base(self.method_settings())
        least = size_of(self.method.least(model, partition, self.method_settings()), model.state_dict())
        most = size_of(self.method.most(model, partition, self.method_settings()), model.state_dict())
        rehearsal = self.rehearsal()
        for epoch in range(self.method_settings().epochs):
            rehearsal.epoch(epoch)
            stored = size_of(rehearsal.adaptation.stored(), model.state_dict())
            for what in ("params", "bytes"):
                low, value, high = (getattr(size, what) for size in (least, stored, most))
                assert low <= value <= high, (
                    f"after epoch {epoch} {value:,} {what} would be stored; least() said {low:,}, most() {high:,}"
                )

    def test_only_what_is_stored_moves(self) -> None:
        rehearsal = self.rehearsal(epochs=2)
        base, stored = self.of_base(), rehearsal.adaptation.stored()
        kept = stored.tensors | set(stored.factors)
        now = pieces_of(rehearsal.adaptation.partition, copied(rehearsal.model))
        moved = {name for name, tensor in now.items() if not same_bits(tensor, base[name])}
        buffers = {name for name, _ in rehearsal.model.named_buffers()}
        statistics = (moved - kept) & buffers
        assert not statistics, f"running statistics move in train(), but are not stored: {few(statistics)}"
        assert moved <= kept, f"these move, but are not stored: {few(moved - kept)}"
        assert moved, "two epochs moved nothing"
        head = set(rehearsal.adaptation.partition.head)
        assert head <= kept, f"every task has a head of its own, but these are not stored: {few(head - kept)}"

    def test_no_module_is_replaced(self) -> None:
        model, partition = self.base(self.method_settings())
        before, names = list(model.modules()), list(model.state_dict())
        adaptation = self.method.adapt(model, partition, self.method_settings())
        assert adaptation.model is model, "the adaptation works on another model than it was given"
        alike = len(before) == len(list(model.modules())) and all(map(same, before, model.modules()))
        assert alike, "adapt() replaces modules; what does not fold is added by extend()"
        assert names == list(model.state_dict()), "adapt() renames, adds or removes tensors"

    def test_the_last_epoch_may_be_chosen(self) -> None:
        adaptation = self.rehearsal(epochs=2).adaptation
        assert adaptation.settled(1), "settled() says no to the last epoch: there would be nothing to choose"
        assert isfinite(adaptation.penalty()), f"penalty() is {adaptation.penalty()}"

    def test_a_scaled_loss_trains_alike(self) -> None:
        """With fp16 the gradients that after_backward() sees are scaled; by a power of 2 that changes no bit."""
        plain, scaled = self.rehearsal(epochs=2), self.rehearsal(epochs=2, scale=1024.0)
        different = differing(copied(plain.model), copied(scaled.model))
        assert not different, f"the loss's scale changes {few(different)}: what needs true gradients is before_step()"

    def test_a_resumed_run_goes_on_as_an_undisturbed_one(self) -> None:
        undisturbed, stopped, resumed = self.rehearsal(epochs=2), self.rehearsal(epochs=1), self.rehearsal()
        resumed.restore(stopped.checkpoint())
        different = differing(copied(stopped.model), copied(resumed.model))
        assert not different, f"load_state_dict() does not bring back {few(different)}"
        resumed.epoch(1)
        different = differing(copied(undisturbed.model), copied(resumed.model))
        assert not different, f"what state_dict() gives is not all: after one more epoch {few(different)} differ"
        assert undisturbed.adaptation.layer_states() == resumed.adaptation.layer_states(), (
            "the layers' states differ after a resumed epoch"
        )

    # What comes of it

    def test_the_delta_is_what_stored_says(self) -> None:
        rehearsal = self.rehearsal(epochs=2)
        adaptation = rehearsal.adaptation
        delta, model = adaptation.delta(), Pieces(rehearsal.model.state_dict())
        assert delta.stored() == adaptation.stored(), "delta() holds something else than stored() says"
        both = set(delta.tensors) & set(delta.factors)
        assert not both, f"stored as values and as factors: {few(both)}"
        other = {name for name, value in delta.tensors.items() if not same_bits(value, model[name])}
        assert not other, f"delta() has other values than the model: {few(other)}"
        before = {name: value.clone() for name, value in delta.tensors.items()}
        with torch.no_grad():
            for parameter in rehearsal.model.parameters():
                parameter.add_(1.0)
        assert not differing(before, delta.tensors), "delta() is no copy: it changes with the model"
        order = [layer.name for layer in (*adaptation.partition.layers, *adaptation.partition.norms)]
        names = [state.name for state in delta.layers]
        assert set(names) <= set(order), f"states of layers that there are not: {few(set(names) - set(order))}"
        assert names == sorted(names, key=order.index), "the states of the layers are not in forward order"

    def test_factors_decode_to_what_the_model_computes_with(self) -> None:
        rehearsal, base = self.rehearsal(epochs=2), self.of_base()
        model = Pieces(rehearsal.model.state_dict())
        for name, factors in rehearsal.adaptation.delta().factors.items():
            form, untouched = self.manager.form(factors.form), base[name].clone()
            parts = {part: tensor.clone() for part, tensor in factors.parts.items()}
            first, second = (form.decode(factors.parts, base[name]) for _ in range(2))
            assert same_bits(first, second), f"{name}: {form.name} decodes to other bits the second time"
            assert same_bits(base[name], untouched), f"{name}: {form.name} writes to the base's tensor"
            assert not differing(parts, factors.parts), f"{name}: {form.name} writes to the parts"
            assert (first.shape, first.dtype) == (untouched.shape, untouched.dtype), (
                f"{name}: {form.name} decodes to {first.dtype} {tuple(first.shape)}"
            )
            error, largest = float((first - model[name]).abs().max()), float(model[name].abs().max())
            assert error <= self.rounding * largest, (
                f"{name}: {form.name} is {error:.2g} off what the model computes with, of at most {largest:.2g}"
            )

    def test_wrong_factors_are_refused(self) -> None:
        rehearsal, base = self.rehearsal(epochs=1), self.of_base()
        for name, factors in rehearsal.adaptation.delta().factors.items():
            for wrong, parts in spoiled(factors.parts):
                taken = not refuses(self.manager.form(factors.form), parts, base[name])
                assert not taken, f"{name}: {factors.form} decodes parts {wrong}; that is a ValueError"

    # Methods that add modules

    def test_an_extension_is_the_same_each_time(self) -> None:
        arguments = self.method.extension(self.method_settings())
        assert json.loads(json.dumps(arguments)) == arguments, "extension() gives what JSON does not keep"
        if not arguments:
            return
        (model, partition), (second, _) = self.base(self.method_settings()), self.base(self.method_settings())
        assert not differing(copied(model), copied(second)), "extend() under one seed gives different models"
        added = set(model.state_dict()) - {name.partition("[")[0] for name in partition.tensors()}
        assert added, "extension() gives arguments, but extend() adds no tensors"
        common = self.method.common(model)
        assert common <= added, f"common() names what extend() did not add: {few(common - added)}"
        stored = self.method.adapt(model, partition, replace(self.method_settings(), train_common=False)).stored()
        assert not common & stored.tensors, "what tasks have in common must stay frozen once train_common is False"
        assert added - common <= stored.tensors, f"added, but never stored: {few(added - common - stored.tensors)}"
