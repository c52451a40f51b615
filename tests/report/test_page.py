"""What is in a page, read by a parser of HTML; what a browser makes of it is in test_browser.py."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from vaentropy.config import RunConfig
from vaentropy.errors import UsageError
from vaentropy.report import render
from vaentropy.runs import diagnose_run, report_run
from vaentropy.runs.folder import is_report

from .conftest import NAMES

MOST_BYTES = 3_000_000


class Read(HTMLParser):
    """Elements with their attributes, and the text of table cells row by row."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.open, self.text, self.preformatted = [], [], None, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("td", "th", "pre"):
            self.open = tag

    def handle_endtag(self, tag):
        if tag == self.open:
            self.open = None

    def handle_data(self, data):
        self.text.append(data)
        if self.open == "pre":
            self.preformatted += data
        elif self.open:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def read(page):
    return Read(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def diagnosis(run):
    return diagnose_run(run, progress=False)


def test_it_holds_all_it_needs(page, read):
    assert page.stat().st_size < MOST_BYTES and is_report(page)
    assert not read.all("link") and not read.all("iframe")
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "action"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), (tag, name, target[:80])
    (policy,) = [each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert not re.search(r"url\((?!#)", page.read_text())


def test_names_stay_text(read):
    # The data's and the page's own script: no more.
    assert len(read.all("script")) == 2 and not read.all("i") and not read.all("b") and not read.all("img")
    # What a data set brings is in cells of the table of features.
    assert set(NAMES) <= {row[0] for row in read.rows if row}


def test_ids_are_unique_and_references_lead_somewhere(read):
    ids = Counter(attributes["id"] for _, attributes in read.elements if "id" in attributes)
    assert not [name for name, count in ids.items() if count > 1]
    for _, attributes in read.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert all(each in ids for each in (attributes.get(name) or "").split())
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            assert not target.startswith("#") or target[1:] in ids, target


def test_diagnosis_comes_first_and_is_that_of_the_run(read, diagnosis):
    text = " ".join("".join(read.text).split())
    assert text.index(diagnosis.headline) < text.index("What the ELBO is made of")
    verdicts = [text.index(finding.verdict) for finding in diagnosis.findings]
    assert verdicts == sorted(verdicts) and verdicts[-1] < text.index("What the ELBO is made of")
    for finding in diagnosis.findings:
        assert " ".join(finding.remedy.split()) in text
        assert all(" ".join(str(evidence).split()) in text for evidence in finding.evidence)
    assert all(number.what.strip() in text for number in diagnosis.tested)
    assert all(reason in text for reason in diagnosis.untested)


def test_tables_hold_the_numbers_of_the_evaluation(read, diagnosis):
    rows = [row for row in read.rows if row]
    elbos = [row[1] for row in rows if row[0] == "= ELBO"]
    assert elbos == [f"{diagnosis.train.elbo:.4f}", f"{diagnosis.held_out.elbo:.4f}"]
    for name, value in zip(NAMES, diagnosis.train.decoder_residuals.tolist(), strict=True):
        (row,) = [row for row in rows if row[0] == name]
        assert float(row[1]) == pytest.approx(value, abs=6e-5)
    latents = [row for row in rows if len(row) == 10 and row[0] in ("0", "1", "2")]
    assert [float(row[2]) for row in latents] == pytest.approx(diagnosis.train.kl_per_latent.tolist(), abs=6e-5)


def test_settings_can_be_trained_with(read, run):
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert RunConfig.from_dict(yaml.safe_load(read.preformatted)) == RunConfig.from_dict(stored)


def test_every_figure_is_described(read):
    images = [each for tag, each in read.elements if each.get("role") == "img" and tag == "div"]
    assert len(images) >= 10 and len(images) == len(read.all("figure"))
    described = [each["aria-label"] for each in images]
    assert len(set(described)) == len(described) and all(re.search(r"\d", text) for text in described)


def test_the_scripts_data_are_those_of_the_history(page, run):
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(block)
    (curves,) = data["curves"]
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert curves["series"]["ELBO"][0] == [row["epoch"] for row in rows]
    assert curves["series"]["ELBO"][1] == pytest.approx([row["running_elbo"] for row in rows], rel=1e-4)
    gaps = [abs(row["running_elbo"] - row["running_entropy_sum"]) / abs(row["running_elbo"]) for row in rows]
    assert curves["gaps"]["relative gap"][1] == pytest.approx(gaps, rel=1e-3)
    assert np.shape(data["latents"][0]["means"]) == (3, 240)


@pytest.mark.slow
def test_equal_runs_give_equal_pages(page, run, tmp_path):
    again = report_run(run, out=tmp_path / "again.html", progress=False)
    assert again.read_text() == page.read_text()


@pytest.mark.slow
def test_replicates_are_shown_as_such(comparison, runs):
    read = Read(comparison.read_text(encoding="utf-8"))
    assert "These runs differ in their seed alone." in "".join(read.text)
    rows = [row for row in read.rows if row and row[0] in map(str, runs)]
    assert len(rows) == 6  # of the tables of results, and of settings
    assert [float(row[1]) for row in rows[:3]] == pytest.approx(
        [diagnose_run(run, progress=False).train.elbo for run in runs], abs=6e-5
    )
    assert [row[1] for row in rows[3:]] == ["0", "1", "2"]
    assert comparison.stat().st_size < MOST_BYTES
    images = [each["aria-label"] for each in read.all("div") if each.get("role") == "img"]
    assert any("replicates" in text for text in images)


# --- Where it is written ----------------------------------------------------------------------------------------------


@pytest.fixture
def drawn_at_once(monkeypatch, page):
    """Nothing is computed: the page is the one that there is."""
    monkeypatch.setattr("vaentropy.runs.report._subject", lambda run, **how: run)
    monkeypatch.setattr("vaentropy.report.render", lambda subjects: page.read_text(encoding="utf-8"))


def test_training_says_where_it_is(trained, page):
    run, out, err = trained
    assert f"Run in {run}" in err and err.endswith(f"Report in {page}\n") and str(page) not in out


@pytest.mark.usefixtures("drawn_at_once")
def test_an_earlier_report_is_replaced_and_nothing_else(run, tmp_path):
    mine = tmp_path / "mine.html"
    for content in (b"my own page", b"\xff\xfe", b""):
        mine.write_bytes(content)
        with pytest.raises(UsageError, match="is no report; name another file"):
            report_run(run, out=mine)
        assert mine.read_bytes() == content
    assert report_run(run, out=mine, overwrite=True) == mine and is_report(mine)
    before = mine.stat().st_ino
    report_run(run, out=mine)
    assert mine.stat().st_ino != before


@pytest.mark.usefixtures("drawn_at_once")
def test_several_runs_are_written_here(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(report_run([run, run])) == "report.html"
    assert is_report(tmp_path / "report.html")


@pytest.mark.usefixtures("drawn_at_once")
def test_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "full.html.partial").mkdir()  # as good as a disk without room
    with pytest.raises(OSError, match=r"full\.html"):
        report_run(run, out=tmp_path / "full.html")


def test_no_runs_no_page():
    with pytest.raises(UsageError, match="no runs given"):
        render([])
    with pytest.raises(UsageError, match="no runs given"):
        report_run([])


def test_html_that_is_no_report(tmp_path):
    for content in (b"", b"<html>", b"x" * 5000 + b"vaentropy report"):
        (tmp_path / "x.html").write_bytes(content)
        assert not is_report(tmp_path / "x.html")
    assert not is_report(tmp_path) and not is_report(tmp_path / "none.html")
