"""The figures of a report, as inline SVG with a description in words."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib

from vaentropy import figures
from vaentropy.errors import UsageError
from vaentropy.figures.style import INK, Figure
from vaentropy.ledger import number
from vaentropy.report.subject import Subject
from vaentropy.training import History

__all__ = ["Picture", "as_svg", "of_runs", "of_subject"]

# Of all SVGs: with it equal figures give equal files.
SALT = "vaentropy"
# How large they are shown where there is room: their text is then as large as that of the page.
PIXELS_PER_INCH = 118
# Latents whose numbers a description tells.
DESCRIBED = 5


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        key: short, for ids.
        title: what it shows.
        description: in words and numbers, for who does not see it.
        svg: the element, with ids of its own.
    """

    key: str
    title: str
    description: str
    svg: str


def as_svg(figure: Figure, prefix: str) -> str:
    """An `<svg>` element to put into a page: ink in the colour of the page's text, no background.

    Args:
        figure: is drawn.
        prefix: of all ids, so that those of several figures differ.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # Both would reach beyond the figure: rules for all elements of the page, and a block of RDF.
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    svg = re.sub(re.escape(INK), "currentColor", svg, flags=re.IGNORECASE)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", head)
    width = round(PIXELS_PER_INCH * figure.get_figwidth())
    return f'{head} style="max-width: {width}px" focusable="false" aria-hidden="true">{rest}'


def of_runs(subjects: Sequence[Subject], *, replicates: bool) -> list[Picture]:
    """Curves of several runs in one figure."""
    trained = [subject for subject in subjects if len(subject.history)]
    if not trained:
        return []
    histories, names = [subject.history for subject in trained], [subject.name for subject in trained]
    labels = None if replicates else names
    title = "Training of all replicates" if replicates else "Training of all runs"
    described = "; ".join(f"{name}: {_training(history)}" for name, history in zip(names, histories, strict=True)) + "."
    return _drawn([("training", title, described, lambda: figures.plot_training(histories, labels=labels))], "all")


def of_subject(subject: Subject, prefix: str, *, all_of_them: bool) -> dict[str, Picture]:
    """Figures of one run by their keys; what cannot be drawn of it is left out.

    Args:
        subject: the run.
        prefix: of ids.
        all_of_them: False leaves out what a comparison has no room for.
    """
    e, view, shape = subject.train, subject.view, subject.shape
    h = e.entropies
    drawings = [
        (
            "terms",
            "From the entropies to the ELBO",
            f"Encoder entropy {number(h.encoder)}, less prior entropy {number(h.prior)}, less decoder entropy "
            f"{number(h.decoder)}, make the entropy sum {number(e.entropy_sum)}; prior residuals {number(e.prior_gap)} "
            f"and decoder residuals {number(e.decoder_gap)} lead to the ELBO, {number(e.elbo)} nats per data point.",
            lambda: figures.plot_terms(e),
        ),
    ]
    if len(subject.history):
        history = subject.history
        drawings += [
            (
                "training",
                "ELBO and entropy sum over the training",
                f"{_training(history)}.",
                lambda: figures.plot_training(history),
            ),
            (
                "latent-entropies",
                "Encoder entropy of each latent",
                _latents(subject),
                lambda: figures.plot_latent_entropies(history),
            ),
        ]
    if view is not None:
        drawings += [
            (
                "reconstructions",
                "Data and their reconstructions",
                f"{len(view):,} of {view.num_points:,} data points were looked at; reconstructed with a mean squared "
                f"error of {_squared_error(subject)} per feature.",
                lambda: figures.plot_reconstructions(view, shape=shape),
            ),
        ]
    if not all_of_them:
        return {picture.key: picture for picture in _drawn(drawings, prefix)}
    drawings.append(
        (
            "estimates",
            "How sure the estimates are",
            f"With all {e.num_points:,} points the ELBO is known to {e.stderr.elbo:.2g} nats and the entropy sum to "
            f"{e.stderr.entropy_sum:.2g}; both errors fall with the square root of the number of points.",
            lambda: figures.plot_estimates(e),
        )
    )
    named = subject.columns
    drawings.append(
        (
            "residuals",
            "Residuals of the features",
            f"Decoder residuals of {_number_of_features(subject)} features; they sum to {number(e.decoder_gap)} nats.",
            lambda: figures.plot_residuals(e, named, shape=shape),
        )
    )
    if view is not None:
        drawings += [
            (
                "latents",
                "Latents of the data",
                f"Posterior means of {len(view):,} data points. {_latents(subject)}",
                lambda: figures.plot_latents(view),
            ),
            (
                "scales",
                "Variance of posterior means, and posterior variance",
                _scales(subject),
                lambda: figures.plot_scales(view),
            ),
            (
                "posteriors",
                "Posterior means and scales",
                f"How posterior means and posterior standard deviations of {len(view):,} data points are distributed.",
                lambda: figures.plot_posteriors(view),
            ),
            (
                "samples",
                "Samples from the prior, beside data",
                f"{len(view.samples):,} means of p(x|z) at draws of z from the prior, some of them shown.",
                lambda: figures.plot_samples(view, shape=shape),
            ),
            (
                "points",
                "Data and reconstruction, point by point",
                "Each data point and the mean of p(x|z) at its posterior mean, in the plane or in space.",
                lambda: figures.plot_points(view),
            ),
            (
                "traversals",
                "Traversals of the latents",
                f"The mean of p(x|z) while each of the latents {', '.join(map(str, view.shown))} goes from a low to a "
                "high quantile of the aggregate posterior, the others at their mean.",
                lambda: figures.plot_traversals(view, shape=shape),
            ),
        ]
    return {picture.key: picture for picture in _drawn(drawings, prefix)}


Drawing = tuple[str, str, str, Callable[[], Figure]]


def _drawn(drawings: Sequence[Drawing], prefix: str) -> list[Picture]:
    pictures = []
    for key, title, description, draw in drawings:
        try:
            figure = draw()
        except UsageError:
            # Of other data or another model than this figure is for.
            continue
        pictures.append(Picture(key, title, description, as_svg(figure, f"{prefix}-{key}")))
    return pictures


def _training(history: History) -> str:
    last, count = history.rows[-1], len(history)
    text = (
        f"After {count:,} epoch{'' if count == 1 else 's'} the running ELBO is {number(last['running_elbo'])} and the "
        f"entropy sum {number(last['running_entropy_sum'])}, a gap of {number(last['running_gap'])} nats per data point"
    )
    return f"{text}; held out, the ELBO is {number(last['held_out_elbo'])}" if "held_out_elbo" in last else text


def _latents(subject: Subject) -> str:
    found = subject.diagnosis.latents
    if found is None:
        return "Posterior and prior are not both normal with independent elements."
    parts = [f"{len(found.which(status))} {status}" for status in ("active", "partly used", "collapsed")]
    most = int(found.kl.argmax())
    largest = f"the largest KL is {float(found.kl[most]):.3g} nats, of latent {most}"
    return f"Of {len(found)} latents {', '.join(parts)}; {largest}."


def _scales(subject: Subject) -> str:
    found = subject.diagnosis.latents
    if found is None:
        return "Variances of the latents."
    used = found.kl.argsort(descending=True).tolist()[:DESCRIBED]
    each = (
        f"latent {h}: {float(found.mean_variance[h]):.3g} and {float(found.posterior_variance[h]):.3g}" for h in used
    )
    return f"Variance of the posterior means, and mean posterior variance, of the most used latents: {'; '.join(each)}."


def _squared_error(subject: Subject) -> str:
    view = subject.view
    assert view is not None
    return f"{float((view.x - view.reconstruction).double().square().nanmean()):.3g}"


def _number_of_features(subject: Subject) -> str:
    residuals = subject.train.decoder_residuals
    return "the" if residuals is None else f"{residuals.numel():,}"
