"""What is in a page, read by a parser of HTML; what a browser makes of it is in test_browser.py."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from vaentropy.errors import DataError, UsageError
from vaentropy.runs import diagnose_run, report_run

from .conftest import NAMES

MOST_BYTES = 3_000_000


class Read(HTMLParser):
    """Elements with their attributes, and the text of table cells row by row."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.open, self.text = [], [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = tag

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.open = None

    def handle_data(self, data):
        self.text.append(data)
        if self.open:
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def read(page):
    return Read(page.read_text(encoding="utf-8"))


def test_it_stands_in_the_run_and_holds_all_it_needs(page, runs, read):
    assert page == runs[0] / "report.html"
    assert page.stat().st_size < MOST_BYTES
    assert not read.all("link") and not read.all("iframe")
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "action"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), (tag, name, target[:80])
    (policy,) = [each["content"] for each in read.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"url\((?!#)", page.read_text())


def test_names_stay_text(read):
    # The style sheet's, the data's and the page's own script: no more.
    assert len(read.all("script")) == 2 and not read.all("i") and not read.all("b")
    # What a data set brings is in cells of the table of features.
    cells = {row[0] for row in read.rows if row}
    assert set(NAMES) <= cells


def test_ids_are_unique_and_references_lead_somewhere(read):
    ids = Counter(attributes["id"] for _, attributes in read.elements if "id" in attributes)
    assert not [name for name, count in ids.items() if count > 1]
    for _, attributes in read.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert all(each in ids for each in (attributes.get(name) or "").split())
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            assert not target.startswith("#") or target[1:] in ids, target


def test_diagnosis_comes_first_and_is_that_of_the_run(read, runs):
    diagnosis = diagnose_run(runs[0], progress=False)
    text = " ".join("".join(read.text).split())
    headings = [text.index(finding.verdict) for finding in diagnosis.findings]
    assert headings == sorted(headings) and headings[0] < text.index("What the ELBO is made of")
    for finding in diagnosis.findings:
        assert " ".join(finding.remedy.split()) in text
    assert diagnosis.headline in text


def test_tables_hold_the_numbers_of_the_evaluation(read, runs):
    diagnosis = diagnose_run(runs[0], progress=False)
    rows = [row for row in read.rows if row]
    assert [row[1] for row in rows if row[0] == "= ELBO"] == [
        f"{diagnosis.train.elbo:.4f}",
        f"{diagnosis.held_out.elbo:.4f}",
    ]
    residuals = dict(zip(NAMES, diagnosis.train.decoder_residuals.tolist(), strict=True))
    for name, value in residuals.items():
        (row,) = [row for row in rows if row[0] == name]
        assert float(row[1]) == pytest.approx(value, abs=6e-5)
    latents = [row for row in rows if len(row) == 10 and row[0] in ("0", "1", "2")]
    assert [float(row[2]) for row in latents] == pytest.approx(diagnosis.train.kl_per_latent.tolist(), abs=6e-5)


def test_every_figure_is_described(read):
    images = [each for tag, each in read.elements if each.get("role") == "img" and tag == "div"]
    assert len(images) >= 10
    described = [each["aria-label"] for each in images]
    assert len(set(described)) == len(described) and all(re.search(r"\d", text) for text in described)


def test_the_scripts_data_are_those_of_the_history(page, runs):
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(block)
    (curves,) = data["curves"]
    rows = [json.loads(line) for line in (runs[0] / "history.jsonl").read_text().splitlines()]
    assert curves["series"]["ELBO"][0] == [row["epoch"] for row in rows]
    assert curves["series"]["ELBO"][1] == pytest.approx([row["running_elbo"] for row in rows], rel=1e-4)
    assert np.shape(data["latents"][0]["means"]) == (3, 240)


def test_equal_runs_give_equal_pages(page, runs, tmp_path):
    again = report_run(runs[0], out=tmp_path / "again.html", progress=False)
    assert again.read_text() == page.read_text()


def test_replicates_are_shown_as_such(comparison, runs):
    read = Read(comparison.read_text(encoding="utf-8"))
    text = "".join(read.text)
    assert "These runs differ in their seed alone." in text
    rows = [row for row in read.rows if row and row[0] in map(str, runs)]
    assert len(rows) == 6  # of the tables of results, and of settings
    assert [row[1] for row in rows[3:]] == ["0", "1", "2"]
    assert comparison.stat().st_size < MOST_BYTES


# --- Where it is written ----------------------------------------------------------------------------------------------


def test_an_earlier_report_is_replaced_and_nothing_else(runs, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("my own page")
    with pytest.raises(UsageError, match="is no report; name another file"):
        report_run(runs[0], out=mine)
    assert mine.read_text() == "my own page"
    report_run(runs[0], out=mine, overwrite=True, progress=False)
    before = mine.stat().st_mtime_ns
    report_run(runs[0], out=mine, progress=False)
    assert mine.stat().st_mtime_ns > before


def test_several_runs_are_written_here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(report_run(runs[:2], progress=False)) == "report.html"
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (lambda folder, run: ([], {}), UsageError, "no runs given"),
        (lambda folder, run: (folder / "nowhere", {}), DataError, "is no run"),
        (lambda folder, run: (run, {"out": folder}), UsageError, "is a folder; name a file"),
        (lambda folder, run: (run, {"out": folder / "no" / "x.html"}), UsageError, "there is no folder"),
        (lambda folder, run: ([run, folder / "nowhere"], {}), DataError, "is no run"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(runs, tmp_path, how, error, message):
    given, options = how(tmp_path, runs[0])
    with pytest.raises(error, match=message):
        report_run(given, **options)
    assert not list(tmp_path.iterdir())
