"""HTML for notebooks: tables of escaped text, and the results that are shown by them."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

import vaentropy as ve
from vaentropy import ledger, markup
from vaentropy.training import History

VOID = ("br",)


class Page(HTMLParser):
    """Rows of cells of the tables of a page, which has to be well formed; attributes are those of inline styles."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.rows, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert {name for name, _ in attrs} <= {"style", "scope"}
        assert all("color" not in value for _, value in attrs), "a colour that is not the notebook's"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def history():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    return ve.fit(ve.vae1(3, 2, (4,)), x[:40], held_out=x[40:], epochs=7, evaluate_every=7, progress=False)


def test_everything_is_escaped():
    evil = "<script>alert('x')</script>&"
    for page in (
        markup.table([evil], [[evil]], caption=evil, texts=[0], sums=[0]),
        markup.paragraph(evil, evil),
        markup.listed([evil]),
        markup.preformatted([evil]),
    ):
        assert "<script" not in page and Page(page).text.count(evil) >= 1
    assert Page(markup.table([evil], [[evil]], caption=evil)).rows == [[evil], [evil]]


def test_nothing_to_list_leaves_nothing():
    assert markup.listed([]) == ""


def test_an_evaluation_is_its_ledger_whose_lines_add_up(history):
    page = Page(history.train._repr_html_())
    head, *rows = page.rows
    assert head == ["", "value", "MC error", "std. error"]
    values = {name: float(value) for name, value, _, _ in rows}
    sign = {"-": -1.0}
    terms = [sign.get(name[0], 1.0) * x for name, x in values.items() if not name.startswith("=")]
    assert sum(terms) == pytest.approx(values["= ELBO"], abs=1e-9)
    assert sum(terms[:3]) == pytest.approx(values["= entropy sum"], abs=1e-9)
    assert values["= ELBO"] == round(history.train.elbo, ledger.DIGITS)
    # The same as the text says, line by line.
    printed = repr(history.train).splitlines()
    for row in rows:
        assert any(line.strip().split() == " ".join(row).split() for line in printed), row
    assert all(line in page.text for line in printed[:2]) and "set σ² to" in page.text


def test_a_history_shows_its_last_rows_and_how_it_ended(history):
    page = Page(history._repr_html_())
    head, *rows = page.rows
    assert [row[head.index("epoch")] for row in rows] == ["3", "4", "5", "6", "7"]
    assert [row[head.index("ELBO")] for row in rows] == [f"{x:.4f}" for x in history["running_elbo"][2:]]
    # Only the last epoch was evaluated.
    assert [row[head.index("held out")] for row in rows] == [*[""] * 4, f"{history.held_out.elbo:.4f}"]
    assert "the last 5 of 7 epochs" in page.text and "stopped" not in page.text
    assert f"ELBO of the training data: {history.train.elbo:.4f} ± {history.train.stderr.elbo:.4f}" in page.text
    stopped = replace(history, stopped="<no better>")._repr_html_()
    assert "stopped: &lt;no better&gt;" in stopped
    assert Page(History()._repr_html_()).text == "no epochs"


def test_a_diagnosis_and_a_selection_look_the_same(history):
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    diagnosis = ve.diagnose(ve.vae1(3, 2, (4,)), x)
    page = Page(diagnosis._repr_html_())
    assert page.rows[0][1:] == ["verdict", "nats", "evidence", "remedy"]
    assert [row[1] for row in page.rows[1:]] == [finding.verdict for finding in diagnosis]
    selection = ve.select(x, model="linear", latent_dims=(1, 2))
    page = Page(selection._repr_html_())
    assert len(page.rows) == 3 and page.text.endswith(selection.verdict)
