"""Trains the small registry whose report docs/report.md shows, and takes its pictures in a browser.

    python docs/report_pictures.py FOLDER

A few minutes on two cores. FOLDER keeps the images and the registry; a second run only takes the pictures again.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from taps_registry import Registry
from taps_registry.cli.demo import pictures

IMAGES = Path(__file__).parent / "images"
# A ResNet-34 with a quarter of the filters: as many layers as the real one, and quick without a GPU.
NARROW = {"channels": [16, 32, 64, 128]}
LETTERS = 52
MARGIN = 16  # pixels around a picture
PRETRAINING: dict[str, Any] = {"method": "full", "epochs": 8, "batch_size": 64, "lr": 3e-3, "augment": "none"}
ADDING: dict[str, Any] = {"epochs": 12, "augment": "light"}
GATED: dict[str, Any] = {**ADDING, "sparsity": 1.5}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cyrillic": ("cyrillic", GATED),
    "cyrillic-norms": ("cyrillic", {**ADDING, "method": "norm-only"}),
    "cyrillic-rank": ("cyrillic", {**ADDING, "method": "taps-rank", "budget": "1%", "encoding": "int4"}),
    "digits": ("digits", GATED),
    "digits-head": ("digits", {**ADDING, "method": "head-only"}),
    "digits-int8": ("digits", {**GATED, "encoding": "int8"}),
    "greek": ("greek", GATED),
    "greek-budget": ("greek", {**ADDING, "method": "taps", "budget": "10%"}),
    "greek-lora": ("greek", {**ADDING, "method": "lora"}),
    "greek-sparse": ("greek", {**GATED, "sparsity": 6.0}),
}


def train(folder: Path) -> Path:
    """Make the registry, or finish it. Returns its home."""
    home = folder / ".taps"
    with Registry.init(home) as registry:
        tasks = {task.name for task in registry.tasks()}
        bases = {base.name for base in registry.bases()}
        if "letters" not in bases:
            weights = _pretrained(folder, _images(folder, "characters"))
            registry.add_base(
                "letters", "resnet34", weights=weights, arguments={"num_classes": LETTERS, **NARROW}, input_size=32
            )
            registry.set_budget(base="letters", max_bytes=10_000_000)
        for name, (images, settings) in TASKS.items():
            if name not in tasks:
                registry.add_task(name, "letters", _images(folder, images), **settings)
    return home


def _pretrained(folder: Path, characters: Path) -> Path:
    """Weights for the base, trained in a registry of their own, which the report is not to show."""
    weights = folder / "letters.safetensors"
    if not weights.exists():
        with Registry.init(folder / "pretraining") as registry:
            registry.add_base("narrow", "resnet34", random_init=True, arguments=NARROW, input_size=32)
            registry.add_task("letters", "narrow", characters, tracker="none", **PRETRAINING)
            registry.export("letters", weights)
        shutil.rmtree(folder / "pretraining")
    return weights


def _images(folder: Path, name: str) -> Path:
    """The demo's images, made once."""
    images = folder / "images" / name
    if not images.exists():
        makers = {"characters": pictures.characters, **pictures.TASKS}
        makers[name](images)
    return images


def photograph(page: Path) -> None:
    """Wide and light from the top to the costs, wide and dark from there, and the first part on a phone.

    In 256 colours: a third of the bytes.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        for name, width, scheme, first, last in (
            ("light", 1120, "light", 0, 2),
            ("dark", 1120, "dark", 2, 4),
            ("phone", 375, "light", 0, 2),
        ):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab = context.new_page()
            tab.goto(page.as_uri())
            cards = [card.bounding_box() for card in tab.locator(".card").all()]
            top = cards[first]["y"] - MARGIN if first else 0
            bottom = cards[last - 1]["y"] + cards[last - 1]["height"] + MARGIN
            shot = tab.screenshot(full_page=True, clip={"x": 0, "y": top, "width": width, "height": bottom - top})
            picture = (
                Image.open(io.BytesIO(shot))
                .convert("RGB")
                .quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            )
            picture.save(IMAGES / f"report-{name}.png", optimize=True)
            context.close()
        browser.close()


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    with Registry.open(train(place)) as opened:
        (place / "report.html").write_text(opened.report(), "utf-8")
    photograph(place / "report.html")
