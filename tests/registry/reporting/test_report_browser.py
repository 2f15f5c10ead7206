"""The report in a real browser: phone and desktop, light and dark, by keyboard, on paper."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from taps_registry import Registry

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VIEWS = [(375, "light"), (375, "dark"), (1280, "light"), (1280, "dark")]

# Texts with less than 4.5 times the contrast to what is painted behind them, which are the backgrounds of their
# ancestors, one over the other; and marks, bars, limits and the stripes of hatched cells with less than 3 times.
FAINT = """
() => {
    const parse = text => {
        const parts = text.match(/[\\d.]+/g).map(Number);
        return {r: parts[0], g: parts[1], b: parts[2], a: parts.length > 3 ? parts[3] : 1};
    };
    const over = (top, under) => Object.fromEntries(
        ["r", "g", "b"].map(key => [key, top[key] * top.a + under[key] * (1 - top.a)]).concat([["a", 1]]));
    const light = colour => {
        const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        return 0.2126 * linear(colour.r) + 0.7152 * linear(colour.g) + 0.0722 * linear(colour.b);
    };
    const behind = element => {
        const chain = [];
        for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e).backgroundColor);
        return chain.map(parse).reduce((under, top) => over(top, under), {r: 255, g: 255, b: 255, a: 1});
    };
    const found = [], seen = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, style = getComputedStyle(element);
        if (!walker.currentNode.data.trim() || element.closest("title") || style.visibility !== "visible") continue;
        const range = document.createRange();
        range.selectNodeContents(walker.currentNode);
        if (!range.getClientRects().length || element.closest(".hidden")) continue;
        const ink = parse(element instanceof SVGElement ? style.fill : style.color), paper = behind(element);
        const [a, b] = [light(over(ink, paper)), light(paper)].sort((x, y) => y - x);
        seen.push(element.textContent);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push([element.textContent, (a + 0.05) / (b + 0.05)]);
    }
    for (const shape of document.querySelectorAll(".mark, .bars rect:not(.track), .budgets rect:not(.track)")) {
        const [a, b] = [light(parse(getComputedStyle(shape).fill)), light(behind(shape))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 3) found.push([shape.getAttribute("class"), (a + 0.05) / (b + 0.05)]);
    }
    for (const line of document.querySelectorAll(".bars .limit, .legend .limit, .budgets .limit")) {
        const [a, b] = [light(parse(getComputedStyle(line).stroke)), light(behind(line))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 3) found.push([line.getAttribute("class"), (a + 0.05) / (b + 0.05)]);
    }
    const hatched = document.querySelectorAll(".stored1, .stored2, .stored3");
    for (const cell of hatched) {
        const stripes = getComputedStyle(cell).backgroundImage.match(/rgba?\\([^)]*\\)/g).map(parse).map(light);
        const [a, b] = [Math.max(...stripes), Math.min(...stripes)];
        if ((a + 0.05) / (b + 0.05) < 3) found.push([cell.className, (a + 0.05) / (b + 0.05)]);
    }
    return {found, seen: seen.length, hatched: hatched.length};
}
"""

# What has the focus: where it is in the document, and whether one can see that it has it.
FOCUSED = """
() => {
    const element = document.activeElement;
    if (!element || element === document.body) return null;
    const style = getComputedStyle(element), ring = element.querySelector(".ring");
    return {
        place: [...document.querySelectorAll("*")].indexOf(element),
        tag: element.tagName.toLowerCase(),
        name: element.getAttribute("aria-label") || element.textContent.trim(),
        visible: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2)
            || (ring !== null && getComputedStyle(ring).stroke !== "none"),
    };
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, chromium_sandbox=os.geteuid() != 0)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A report with every chart, and a base without tasks."""
    folder = tmp_path_factory.mktemp("browser")
    quick = {"augment": "none", "tracker": "none", "workers": 0, "batch_size": 8}
    with Registry.init(folder / "home") as made:
        made.add_base("base", "test_resnet", random_init=True, input_size=32)
        made.add_base("bare", "test_resnet", random_init=True, input_size=32, seed=1)
        made.add_task("cars", "base", images, epochs=3, sparsity=10.0, score_lr=0.05, **quick)
        for twin in "ab":  # long names, as far to the right as can be, at one place
            made.add_task("open-" + "gates-" * 15 + twin, "base", images, epochs=1, **quick)
        made.add_task("head", "base", images, epochs=1, method="head-only", **quick)
        made.add_task("sharing", "base", images, epochs=1, method="hard-sharing", **quick)
        made.add_task("rank", "base", images, epochs=1, method="taps-rank", budget="1%", encoding="int4", **quick)
        made.add_task("spent", "base", images, epochs=1, method="taps", budget="10%,140kB", **quick)
        made.add_task("bytes", "base", images, epochs=1, method="taps", budget="10%", encoding="int8", **quick)
        made.set_budget(base="base", max_bytes=10**5)
        (folder / "report.html").write_text(made.report(), "utf-8")
    return folder / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report in a window of its own; whatever it asks for or complains of fails the test."""
    width, scheme = getattr(request, "param", (1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    yield opened
    assert set(asked) == {report.as_uri()}
    assert complaints == []
    context.close()


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("page", VIEWS, indirect=True)
def test_the_page_is_as_wide_as_its_window_and_every_text_can_be_read(page: Page) -> None:
    assert overflow(page) <= 0
    closed = page.evaluate(FAINT)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.locator("input.numbers").check()
    opened = page.evaluate(FAINT)
    assert closed["found"] == opened["found"] == []
    assert closed["seen"] > 100
    assert closed["hatched"] > 20
    assert overflow(page) <= 0


def test_the_search_for_what_is_faint_finds_it(page: Page) -> None:
    page.evaluate("document.querySelector('h1').style.color = '#aaaaaa'")
    page.evaluate("document.querySelector('.plot text').style.fill = '#cccccc'")
    page.evaluate("document.querySelector('.mark').style.fill = '#dddddd'")
    page.evaluate("document.querySelector('.bars .limit').style.stroke = '#dddddd'")
    hatch = "repeating-linear-gradient(135deg, #cccccc 0 3px, #eceff1 3px 6px)"
    page.evaluate(f"document.querySelector('tbody .stored1').style.backgroundImage = '{hatch}'")
    assert len(page.evaluate(FAINT)["found"]) == 5


@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_hatches_are_told_apart_without_hue_and_from_the_looks_of_scores(page: Page, scheme: str, media: str) -> None:
    page.emulate_media(media=media, color_scheme=scheme)
    looks = ("not", "stored1", "stored2", "stored3")
    grey = {look: seen(page, look).convert("L") for look in (*looks, "open1", "open2", "open3")}
    levels = [ImageStat.Stat(grey[look]).mean[0] for look in looks]
    more = 1 if (scheme, media) == ("dark", "screen") else -1  # what is stored is lighter on a dark screen
    assert min(more * (after - before) for before, after in pairwise(levels)) > 15, levels
    stripes = {look: ImageStat.Stat(picture).stddev[0] for look, picture in grey.items()}
    assert {look for look, depth in stripes.items() if depth > 20} == {"stored1", "stored2", "stored3"}
    assert max(stripes[look] for look in ("not", "open1", "open2", "open3")) < 1


def seen(page: Page, look: str) -> Image.Image:
    """The middle of a cell with this look, which need not appear among the tasks'."""
    page.evaluate(f"document.querySelector('.heat tbody td').className = {look!r}")
    shot = Image.open(io.BytesIO(page.locator(".heat tbody td").first.screenshot()))
    return shot.crop((3, 3, shot.width - 3, shot.height - 3))


def test_light_and_dark_differ(browser: Browser, report: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        opened = context.new_page()
        opened.goto(report.as_uri())
        papers.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert papers == ["rgb(246, 247, 248)", "rgb(20, 23, 26)"]


@pytest.mark.parametrize("page", [(375, "light"), (1280, "dark")], indirect=True)
def test_the_tab_key_leads_through_the_page_in_order_and_shows_where_it_is(page: Page) -> None:
    steps = []
    for _ in range(100):
        page.keyboard.press("Tab")
        step = page.evaluate(FOCUSED)
        if step is None:
            break
        steps.append(step)
    places = [step["place"] for step in steps]
    assert places == sorted(set(places))
    assert [step["name"] for step in steps if not step["visible"]] == []
    assert steps[0]["name"] == "To the content"
    names = [step["name"] for step in steps]
    assert "Stored layers of the tasks on base, by layer" in names
    assert any(name.startswith("cars, taps: ") for name in names)
    reachable = "a[href]:not([tabindex]), input, summary, [tabindex='0']"
    shown = f"[...document.querySelectorAll({reachable!r})].filter(e => e.checkVisibility()).length"
    assert len(steps) == page.evaluate(shown)


def test_numbers_and_details_open_by_keyboard(page: Page) -> None:
    cell = page.locator(".heat tbody td").first
    before = cell.bounding_box()
    page.locator("input.numbers").focus()
    page.keyboard.press("Space")
    after = cell.bounding_box()
    assert before is not None
    assert after is not None
    assert before["width"] < 26 < 36 < after["width"]
    assert cell.evaluate("cell => getComputedStyle(cell).textIndent") == "0px"
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_a_mark_leads_to_its_task(page: Page) -> None:
    page.locator(".plot a").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector(':target').tagName") == "TR"


def test_a_wide_heat_map_scrolls_in_its_box_and_keeps_the_names(browser: Browser, report: Path) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 800})
    opened = context.new_page()
    opened.goto(report.as_uri())
    box = opened.locator(".heat .scroll")
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    name = opened.locator(".heat tbody th").first
    before = name.bounding_box()
    box.focus()
    opened.keyboard.press("ArrowRight")
    until = time.monotonic() + 10
    while box.evaluate("box => box.scrollLeft") == 0:  # it glides; the page's policy forbids to wait inside of it
        assert time.monotonic() < until
        opened.wait_for_timeout(20)
    after = name.bounding_box()
    assert before is not None
    assert after is not None
    assert after["x"] == pytest.approx(before["x"], abs=2)  # the table's own spacing
    context.close()


def test_it_prints_in_full_and_on_white(page: Page) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert overflow(page) <= 0
    assert not page.locator(".numbers").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
