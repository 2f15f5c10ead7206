"""The suite's rows as pictures: accuracy against bytes, and which layers opened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import mean
from typing import Any

from .rows import Row
from .summaries import REFERENCE, labels, named, summarise

SHOWN = "taps 10%"  # whose layers the picture shows: within the same bytes `taps-rank` has nearly all of them


@dataclass(frozen=True)
class Series:
    """How the rows of a family are drawn: no two differ by hue alone."""

    colour: str
    marker: str
    line: str = ""
    hollow: bool = False


ORANGE, GREEN, BLUE, GREY = "#d55e00", "#009e73", "#0072b2", "#777777"
SERIES = {  # in the legend's order, which goes down its columns
    "taps-rank": Series(BLUE, "o", "-"),
    "taps-rank in int4": Series(BLUE, "*", "--"),
    "taps-rank, re-encoded": Series(BLUE, "o", hollow=True),
    "piggyback": Series("#000000", "P"),
    "taps, a budget": Series(GREEN, "D"),
    "taps, a penalty": Series(GREEN, "X"),
    "taps, re-encoded": Series(GREEN, "D", hollow=True),
    "lora": Series(ORANGE, "s"),
    "lora in int4": Series(ORANGE, "*"),
    "lora, re-encoded": Series(ORANGE, "s", hollow=True),
    "norm-only": Series("#000000", "_"),
    "first layers": Series(GREY, "<"),
    "last layers": Series(GREY, ">"),
}
UNKNOWN = Series(GREY, ".")


def accuracy(found: Sequence[Row], path: Path) -> None:
    """Accuracy against bytes, one panel a backbone; full fine-tuning, and what stores nothing, as lines."""
    backbones = list(dict.fromkeys(row.backbone for row in found))
    size = (3.3 * len(backbones), 4.6)
    figure, panels = _pyplot().subplots(1, len(backbones), figsize=size, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for panel, backbone in zip(panels[0], backbones, strict=True):
        for label, handle in _draw(panel, [row for row in found if row.backbone == backbone]):
            handles.setdefault(label, handle)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=backbone, xlabel="bytes a task, % of the base", xscale="log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("points vs. full fine-tuning")
    panels[0][0].set_yscale("symlog", linthresh=10)  # up to ten points as they are, more of them closer
    panels[0][0].set_yticks([5, 2, 0, -2, -5, -10, -20, -50], ["5", "2", "0", "-2", "-5", "-10", "-20", "-50"])
    order = [name for name in SERIES if name in handles] + [name for name in handles if name not in SERIES]
    figure.legend(
        [handles[name] for name in order], order, loc="outside lower center", ncols=max(1, len(panels[0]) + 1)
    )
    _save(figure, path)


def _draw(panel: Any, here: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The rows of one backbone. Yields names for the legend, each with what it names."""
    families: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name in labels(here):
        made = summarise(named(here, name), named(here, REFERENCE))
        if made is None or isnan(made.behind) or name == REFERENCE:
            continue
        if made.share == 0:
            yield f"{name}, nothing stored", panel.axhline(100 * made.behind, color=GREY, linestyle=":")
        else:
            error = 0.0 if isnan(made.error) else 100 * made.error
            families[_family(name)].append((100 * made.share, 100 * made.behind, error))
    for family, points in families.items():
        style = SERIES.get(family, UNKNOWN)
        shares, behind, errors = zip(*sorted(points), strict=True)
        yield (
            family,
            panel.errorbar(
                shares,
                behind,
                errors,
                color=style.colour,
                marker=style.marker,
                markerfacecolor="white" if style.hollow else style.colour,
                linestyle=style.line,
                linewidth=1.2,
                elinewidth=0.8,
                markersize=8 if style.marker in "*_" else 5.5,
            ),
        )


def _family(name: str) -> str:
    """Rows that are drawn as one series."""
    if ", re-encoded" in name:
        return f"{name.split()[0]}, re-encoded"
    if name.startswith("taps penalty"):
        return "taps, a penalty"
    if name.startswith(("taps-rank", "lora")):
        return f"{name.split()[0]} in int4" if "int4" in name else name.split()[0]
    if name.startswith("taps"):
        return "taps, a budget"
    if name.startswith(("first ", "last ")):
        return f"{name.split()[0]} layers"
    return name.rpartition(" ")[0] if name.endswith("%") else name


def layers(found: Sequence[Row], path: Path) -> None:
    """How often each layer opened, task by task, one panel a backbone."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    backbones = list(dict.fromkeys(row.backbone for row in found))
    tasks = list(dict.fromkeys(row.task for row in found))
    size = (8, 0.6 + 1.8 * len(backbones))
    figure, panels = _pyplot().subplots(len(backbones), 1, figsize=size, squeeze=False)
    for panel, backbone in zip(panels[:, 0], backbones, strict=True):
        here = [row for row in found if row.backbone == backbone and row.test is not None]
        every = next((row.open.split() for row in here if row.method == REFERENCE), [])
        drawn = panel.imshow(_often(here, tasks, every), aspect="auto", cmap="Greens", vmin=0, vmax=1)
        panel.vlines([place + 0.5 for place in range(len(every) - 1)], -0.5, len(tasks) - 0.5, "white", linewidth=1)
        panel.hlines([place + 0.5 for place in range(len(tasks) - 1)], -0.5, len(every) - 0.5, "white", linewidth=1)
        panel.set_yticks(range(len(tasks)), tasks)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(length=0)
        panel.set_title(f"{backbone}: {len(every)} layers, from the stem to the last")
    figure.colorbar(drawn, ax=panels, format=PercentFormatter(1), label="seeds whose task stores the layer", aspect=40)
    _save(figure, path)


def _often(here: Sequence[Row], tasks: Sequence[str], layers: Sequence[str]) -> list[list[float]]:
    """The share of a task's runs in which a layer opened, ``[task][layer]``; NaN without runs."""
    runs = {task: [row.open.split() for row in named(here, SHOWN) if row.task == task] for task in tasks}
    return [
        [mean(layer in opened for opened in runs[task]) if runs[task] else nan for layer in layers] for task in tasks
    ]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "suite"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    _pyplot().close(figure)
