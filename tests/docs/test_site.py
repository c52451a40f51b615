"""The guide as a site: whole, without broken links, and nothing in it is loaded from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from importlib import import_module
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

import vaentropy
from vaentropy import integrations
from vaentropy.cli.group import vaentropy as command

from ..pages import DOCS, ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# What a browser loads for a page by itself; links to follow (<a>) may lead anywhere.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
API = DOCS / "api"


class Read(HTMLParser):
    """Of a page: places that can be linked to, links, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.linked_from_index = {""}, [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.anchors.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if attributes.get(LOADED.get(tag)):
            self.loaded.append(attributes[LOADED[tag]])


def modules():
    """The modules whose names a user imports."""
    found = ["vaentropy", *(f"vaentropy.{name}" for name in vaentropy._MODULES if name != "integrations")]
    places = [entry for entry in os.scandir(integrations.__path__[0]) if entry.name.endswith(".py")]
    return found + [f"vaentropy.integrations.{p.name.removesuffix('.py')}" for p in places if p.name[0] != "_"]


@pytest.mark.parametrize("module", modules())
def test_every_public_module_has_a_page(module):
    name = module.removeprefix("vaentropy.")
    assert f"{{api}} {module}\n" in (API / f"{name}.md").read_text(encoding="utf-8")
    assert name in (API / "index.md").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--doctree-dir", folder / "doctrees"]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, folder / "html"], capture_output=True, text=True, cwd=ROOT
    )
    assert built.returncode == 0 and not built.stderr, built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Read(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_no_link_is_broken(site, pages):
    broken = defaultdict(list)
    assert len(pages) > 40
    for name, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme:
                assert urlsplit(link).scheme in ("http", "https"), link
                continue
            path, anchor = urldefrag(urljoin(name, link))
            target = pages.get(path or name)
            if not (site / path).is_file() or (target and unquote(anchor) not in target.anchors):
                broken[name].append(link)
    assert not broken


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for loaded in page.loaded:
            parts = urlsplit(loaded)
            assert not parts.scheme and not parts.netloc, f"{name} loads {loaded}"
            assert (site / urljoin(name, parts.path)).is_file(), f"{name} loads {loaded}, which is not there"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        for loaded in re.findall(r"url\(\s*['\"]?([^'\")]*)|@import\s+['\"]([^'\"]*)", text):
            assert not re.match(r"(https?:)?//", "".join(loaded)), f"{sheet.name} loads {loaded}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.html", "questions/collapse.html", "search.html?q=collapse"])
def test_a_browser_asks_for_nothing_else(site, name):
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium here; install it (Debian and Ubuntu: the package chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab, asked, said = browser.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(f"{site.as_uri()}/{name}")
        tab.wait_for_load_state("networkidle")
        if "?" in name:
            assert "13 pages" in tab.content() or tab.locator("ul.search li").count() > 5
        browser.close()
    assert said == [] and len(asked) > 3 and all(url.startswith(site.as_uri()) for url in asked)


@pytest.mark.slow
def test_what_is_public_is_explained(pages):
    for module in modules():
        anchors = pages[f"api/{module.removeprefix('vaentropy.')}.html"].anchors
        names = vaentropy._HOMES if module == "vaentropy" else getattr(import_module(module), "__all__", ())
        text = (API / f"{module.removeprefix('vaentropy.')}.md").read_text(encoding="utf-8")
        left_out = re.findall(r"^:except: (.*)$", text, re.MULTILINE)
        for name in set(names) - set(" ".join(left_out).split()):
            elsewhere = pages["api/vaentropy.html"].anchors
            assert f"{module}.{name}" in anchors or f"vaentropy.{name}" in elsewhere, f"{module}.{name}"


@pytest.mark.slow
def test_every_verb_has_its_help(site, pages):
    text = (site / "command_line.html").read_text(encoding="utf-8")
    for verb, each in command.commands.items():
        assert verb in pages["command_line.html"].anchors
        for parameter in each.params:
            for option in parameter.opts:
                assert option in text or not option.startswith("-"), option
