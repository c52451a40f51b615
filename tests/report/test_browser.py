"""Reports in a real browser: Debian's Chromium, headless."""

import os
import shutil

import pytest

from vaentropy.runs import report_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1280, 390)

if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium here; install it (Debian and Ubuntu: the package chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM is not None, "CI=true, but there is no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in the browser, and what it said and asked for."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said, self.asked = [], []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())

    def __getattr__(self, name):
        return getattr(self.tab, name)


@pytest.fixture(params=["page", "comparison"])
def path(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def opened(browser, page):
    opened = Opened(browser, page)
    yield opened
    opened.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_quiet_asks_for_nothing_and_fits(browser, path, width):
    opened = Opened(browser, path, width)
    assert opened.said == [] and opened.asked == [path.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing wider than the page stands outside a box that scrolls.
    wide = "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll') && !e.closest('.skip')"
    assert (
        opened.evaluate(f"[...document.querySelectorAll('body *')].filter({wide}).map(e => e.outerHTML.slice(0, 80))")
        == []
    )
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(browser, path, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    opened = Opened(browser, path, width, scheme)
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(opened.tab).response["violations"]
    assert [(each["id"], each["impact"], each["nodes"][0]["html"][:120]) for each in found] == []
    opened.close()


def column(opened, table, number):
    cells = f"#{table} tbody tr > :nth-child({number})"
    return opened.eval_on_selector_all(cells, "cells => cells.map(cell => cell.textContent)")


def test_tables_sort_by_number_and_back(opened):
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    head = opened.locator("#r0-history thead th").nth(0)
    assert head.get_attribute("aria-sort") is None
    head.locator("button").click()
    assert column(opened, "r0-history", 1) == [str(epoch) for epoch in range(1, 13)]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(opened, "r0-history", 1) == [str(epoch) for epoch in range(12, 0, -1)]
    opened.locator("#r0-history thead th").nth(1).locator("button").click()
    elbos = [float(text) for text in column(opened, "r0-history", 2)]
    assert elbos == sorted(elbos) and head.get_attribute("aria-sort") is None


def test_missing_values_come_last_whichever_way(opened):
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    names = opened.eval_on_selector_all("#r0-history thead th", "heads => heads.map(head => head.textContent)")
    number = names.index("held-out ELBO") + 1
    for _ in range(2):
        opened.locator("#r0-history thead th").nth(number - 1).locator("button").click()
        cells = column(opened, "r0-history", number)
        assert cells.count("–") == 8 and cells[-8:] == ["–"] * 8


def test_curves_answer_to_keys_and_mouse(opened):
    chart = opened.locator(".curves .chart")
    readout = opened.locator(".curves .readout")
    assert readout.text_content() == ""
    chart.focus()
    opened.keyboard.press("End")
    assert readout.text_content().startswith("Epoch 12: ELBO ")
    opened.keyboard.press("ArrowLeft")
    assert readout.text_content().startswith("Epoch 11: ELBO ")
    box = chart.bounding_box()
    opened.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.3 * box["height"])
    first = readout.text_content()
    opened.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"])
    assert readout.text_content() not in ("", first)


def ticks(opened):
    """Numbers under the axis of epochs."""
    texts = ".curves .chart text[text-anchor=middle]:not([transform])"
    found = opened.eval_on_selector_all(texts, "texts => texts.map(text => text.textContent)")
    return [float(text) for text in found if text != "epoch"]


def test_curves_zoom_by_drag_buttons_and_keys(opened):
    chart = opened.locator(".curves .chart")
    opened.get_by_role("button", name="All epochs").click()
    whole = ticks(opened)
    assert min(whole) <= 2 and max(whole) == 12
    opened.get_by_role("button", name="Zoom in").click()
    assert max(ticks(opened)) - min(ticks(opened)) < 0.7 * (max(whole) - min(whole))
    opened.get_by_role("button", name="Zoom out").click()
    assert ticks(opened) == whole
    box = chart.bounding_box()
    at = box["y"] + 0.3 * box["height"]
    opened.mouse.move(box["x"] + 0.6 * box["width"], at)
    opened.mouse.down()
    opened.mouse.move(box["x"] + 0.9 * box["width"], at, steps=3)
    opened.mouse.up()
    assert min(ticks(opened)) > 6 and max(ticks(opened)) < 12
    chart.focus()
    opened.keyboard.press("Escape")
    assert ticks(opened) == whole


def test_latents_are_picked(opened):
    picker = opened.locator(".picker")
    before = picker.locator(".readout").text_content()
    points = picker.locator(".chart circle").first.get_attribute("cx")
    across = picker.get_by_label("Across:")
    across.select_option(index=2)
    after = picker.locator(".readout").text_content()
    chosen = across.evaluate("select => select.selectedOptions[0].textContent")
    assert after != before and f"in latents {chosen.removeprefix('latent ')} and" in after
    assert picker.locator(".chart circle").first.get_attribute("cx") != points


def test_everything_can_be_reached_by_keyboard(opened):
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"
    reached = set()
    for _ in range(120):
        opened.keyboard.press("Tab")
        name = opened.evaluate("document.activeElement.tagName + '.' + document.activeElement.getAttribute('class')")
        reached.add(name)
    assert {"SUMMARY.null", "DIV.scroll", "BUTTON.null", "SELECT.null", "svg.chart"} <= reached


def test_it_prints_whole_and_without_controls(opened):
    opened.emulate_media(media="print")
    assert opened.locator(".controls").first.is_hidden()
    assert opened.locator(".curves figure").first.is_visible()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = opened.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000


def test_without_scripts_it_is_complete(browser, page):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator(".curves figure").first.is_visible()
    assert tab.locator("table.sortable").count() >= 2 and tab.locator(".findings > li").count() >= 1
    context.close()


@pytest.mark.slow
def test_ten_latents_of_mnist_stay_small(browser, tmp_path):
    from vaentropy.config import RunConfig
    from vaentropy.runs import train

    if not os.environ.get("VAENTROPY_DATA"):
        pytest.skip("set VAENTROPY_DATA to the folder that holds the data sets")
    config = RunConfig(data="mnist", latent_dim=10, epochs=1, hidden=(50,))
    path = report_run(train(config, out=tmp_path / "run", progress=False).folder, progress=False)
    assert path.stat().st_size < 3_000_000
    opened = Opened(browser, path, 390)
    assert opened.said == [] and opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.close()
