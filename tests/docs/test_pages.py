"""The Python of every page of the guide runs, and prints what stands there."""

from pathlib import Path

import pytest
import torch

import vaentropy

from ..pages import DOCS, blocks, run, same

QUESTIONS = DOCS / "questions"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if blocks(page.read_text(encoding="utf-8"))]
# Trainings of several candidates.
SLOW = ("conditional.md", *(f"questions/{name}.md" for name in ("latent_dimensions", "warmup", "collapse")))
# A page that is not made of whole programs takes names for granted.
GIVEN = "diagnosis.md"


def as_parameter(page):
    name = page.relative_to(DOCS).as_posix()
    return pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


def given():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(70, 64, generator=generator)
    return {"model": vaentropy.vae1(64, 2, (8,)), "x_train": x[:50], "x_held_out": x[50:]}


@pytest.mark.parametrize("page", [as_parameter(page) for page in PAGES])
def test_the_code_runs_and_prints_what_the_page_says(page: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = given() if page.name == GIVEN else {}
    for printed, expected in run(page, names):
        if page.name != GIVEN:
            assert same(printed, expected or ""), f"printed:\n{printed}\non the page:\n{expected}"
    if page.name == GIVEN:
        assert len(blocks(page.read_text(encoding="utf-8"))) == 2 and names["diagnosis"].problems


def test_there_is_an_answer_to_each_question():
    answers = [page for page in PAGES if page.parent == QUESTIONS]
    assert len(answers) == 13
    for page in answers:
        title, _, *rest = page.read_text(encoding="utf-8").splitlines()
        assert title.startswith("# ") and "?" in title, page
        assert rest[0] and not rest[0].startswith(("`" * 3, "#")), f"{page} does not begin with the answer"
        assert page.stem in (QUESTIONS / "index.md").read_text(encoding="utf-8").splitlines()


def test_the_same_is_told_from_another():
    assert same("ELBO  -7.74 ± 0.01\n", "ELBO -7.70 ± 0.02")
    for other in ("ELBO -8.74 ± 0.01", "ELBO -7.74", "gap -7.74 ± 0.01", "ELBO 7.74 ± 0.01", ""):
        assert not same("ELBO -7.74 ± 0.01", other)
