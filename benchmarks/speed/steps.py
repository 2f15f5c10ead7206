"""Steps of the package's own loop, on random pixels."""

from __future__ import annotations

from collections.abc import Iterator

from .contenders import Composed, Steps
from .jobs import Options
from .ratios import Ratio, in_turns, summed_up


def steps(options: Options) -> Iterator[Ratio]:
    """Steps before and after what is stored is fixed, near the end, and of the usual implementation, against full's."""
    from taps_registry.registry.training.allocator import kept_memory

    with kept_memory():
        for model in options.models:
            yield from _of(model, options)


def _of(model: str, options: Options) -> Iterator[Ratio]:
    what = f"{model}: a step of %s / of full"
    full, composed = Steps(options, model, "full"), Composed(options, model)
    full.warm_up()
    composed.warm_up()
    ratios = in_turns(composed, full, options.pairs)
    yield summed_up("steps", what % "W0 + I*D in the forward pass", ratios)
    floor = Steps(options, model, "norm-only")
    floor.warm_up()
    ratios = in_turns(floor, full, options.pairs)
    yield summed_up("steps", what % "norm-only: no weight has a gradient", ratios)
    for method in options.methods:
        spender = Steps(options, model, method)
        spender.warm_up()
        ratios = in_turns(spender, full, options.pairs)
        yield summed_up("steps", what % f"{method}, before it is fixed", ratios, target=1.05)
        spender.fix()
        spender.warm_up()
        ratios = in_turns(spender, full, options.pairs)
        yield summed_up("steps", what % f"{method}, fixed", ratios, target=1.05, note=spender.opened())
        ratios = in_turns(spender, composed, options.pairs)
        yield summed_up("steps", f"{model}: a step of {method}, fixed / of W0 + I*D", ratios)
        if spender.near_end():
            spender.warm_up()
            ratios = in_turns(spender, full, options.pairs)
            yield summed_up("steps", what % f"{method}, near the end of the run", ratios)
