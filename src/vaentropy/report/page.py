"""`render`: subjects to the text of an HTML page."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from vaentropy import __version__, ledger
from vaentropy.errors import UsageError
from vaentropy.files import to_json
from vaentropy.report import pictures, tables
from vaentropy.report.subject import Subject
from vaentropy.training import History

__all__ = ["render"]

# Points of a curve, and of a cloud, that the page's script is given.
MOST_POINTS = 1000
# Significant digits of these.
DIGITS = 5
CURVES = {
    "ELBO": "running_elbo",
    "entropy sum": "running_entropy_sum",
    "held-out ELBO": "held_out_elbo",
}


def render(subjects: Sequence[Subject]) -> str:
    """A page about one run, or about several: the diagnosis, figures, tables, settings and environment.

    It holds all it needs, and asks nothing of a network. Whatever text the runs bring stays text.

    Args:
        subjects: the runs, one or more; those that differ in their seed alone are shown as replicates too.

    Raises:
        UsageError: there are none.
    """
    if not subjects:
        raise UsageError("no runs given to report on, expected one or more")
    several = len(subjects) > 1
    # Where there are several, a page has no room for all figures of each.
    runs = [_run(subject, f"r{number}", all_of_them=not several) for number, subject in enumerate(subjects)]
    data = {
        "curves": [_curves(subject) for subject in subjects],
        "latents": [_cloud(subject) for subject in subjects],
    }
    return _template().render(
        title=subjects[0].name if not several else f"{len(subjects)} runs",
        overview=_overview(subjects) if several else None,
        runs=runs,
        data=data,
        version=__version__,
        style=_asset("report.css"),
        script=_asset("report.js"),
        # The browser runs this script and no other, whatever else may get into the page.
        allowed=base64.b64encode(hashlib.sha256(_asset("report.js").encode()).digest()).decode(),
    )


@cache
def _asset(name: str) -> str:
    return files("vaentropy.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html.j2"))


def _overview(subjects: Sequence[Subject]) -> dict[str, Any]:
    """What the template needs of several runs."""
    replicates = tables.differing(subjects) == ("seed",)
    found = (tables.compared(subjects), tables.settings_compared(subjects))
    return {
        "tables": [table for table in found if table],
        "pictures": pictures.of_runs(subjects, replicates=replicates),
        "replicates": replicates,
        # By what the runs say of their data: the same set may come in other units.
        "alike": len({subject.description.partition(" trained on ")[2] for subject in subjects}) == 1,
    }


def _run(subject: Subject, prefix: str, *, all_of_them: bool) -> dict[str, Any]:
    """What the template needs of one run."""
    d = subject.diagnosis
    parts = [tables.terms(d.train, "terms-train", "training data")]
    if d.held_out is not None:
        parts.append(tables.terms(d.held_out, "terms-held-out", "held-out data"))
    return {
        "prefix": prefix,
        "name": subject.name,
        "description": subject.description,
        "key_numbers": tables.key_numbers(subject),
        "headline": d.headline,
        "clean": d.clean,
        "findings": d.findings,
        "tested": [
            (number.what.strip(), f"{number.value:.4f}", _error(number.error), number.unit) for number in d.tested
        ],
        "untested": d.untested,
        "terms": parts,
        "remarks": [*subject.remarks, *ledger.remarks(d.train)],
        "pictures": pictures.of_subject(subject, prefix, all_of_them=all_of_them),
        "without_view": subject.without_view,
        "tables": [
            table for table in (tables.latents(subject), tables.features(subject), tables.history(subject)) if table
        ],
        # As YAML, which JSON is a part of.
        "settings": "\n".join(f"{name}: {to_json(value)}" for name, value in subject.settings.items()),
        "environment": _texts(subject.environment),
    }


def _error(error: float | None) -> str:
    return f"± {error:.2g}" if error and not math.isnan(error) else ""


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as text, mappings flattened."""
    texts = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts += [(f"{name}: {inner}", text) for inner, text in _texts(value)]
        else:
            texts.append((name, tables.as_cell(tables.plain_text(value)).text))
    return texts


# --- What the script draws -------------------------------------------------------------------------------------------


def _curves(subject: Subject) -> dict[str, Any]:
    """Curves of the training, thinned."""
    history = subject.history
    series = {name: _series(history, column) for name, column in CURVES.items() if column in history.columns}
    gaps = {}
    for name, part in (("relative gap", "running"), ("held-out relative gap", "held_out")):
        if f"{part}_gap" in history.columns:
            epochs, gap = _series(history, f"{part}_gap")
            elbo = _series(history, f"{part}_elbo")[1]
            sizes = [abs(g / e) if g and e else None for g, e in zip(gap, elbo, strict=True)]
            gaps[name] = epochs, [None if size is None else _rounded(size) for size in sizes]
    return {"name": subject.name, "series": series, "gaps": gaps}


def _series(history: History, column: str) -> tuple[list[int], list[float | None]]:
    epochs, values = history.at(column), history[column]
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int))
    return [epochs[i] for i in chosen], [_rounded(values[i]) for i in chosen]


def _cloud(subject: Subject) -> dict[str, Any] | None:
    """Posterior means of the most used latents."""
    view = subject.view
    if view is None or not len(view):
        return None
    chosen = list(view.shown)
    means = view.latent_mean[:, chosen]
    labels = None if view.labels is None else [str(label) for label in view.labels.tolist()]
    return {
        "latents": chosen,
        "means": [[_rounded(value) for value in column] for column in means.T.tolist()],
        "labels": labels,
    }


def _rounded(value: float) -> float | None:
    """To so many digits, so that the page stays small; JSON has no NaN."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
