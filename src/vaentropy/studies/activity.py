"""How many latents a model uses with σ² = 1 fixed and with σ² learned: arms, rows of the table, figure, sentence."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.diagnosis.latents import Latents, latents_of
from vaentropy.families import vae0, vae1
from vaentropy.figures.style import (
    COLOURS,
    LINE_STYLES,
    MARKERS,
    PALE,
    SMALL,
    Figure,
    new_figure,
    styled,
    whole_numbers,
)
from vaentropy.likelihoods import GaussianHead
from vaentropy.results import Evaluation
from vaentropy.studies.trials import Arm, Trials, summary
from vaentropy.training import History
from vaentropy.vae import VAE

__all__ = ["ACTIVE_BELOW", "FIXED", "LEARNED", "activity", "arms", "finding", "plot_activity"]

# Nats of encoder entropy below which the paper counts a latent as active.
ACTIVE_BELOW = 1.0
# Nats of a standard normal latent, which is what a collapsed latent's posterior is: 1.42.
PRIOR_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
FIXED, LEARNED = "σ² = 1 fixed", "σ² learned"
PANEL_WIDTH, HEIGHT = 3.2, 3.4


def arms(build: Callable[..., VAE], epochs: tuple[int, int], **settings: Any) -> tuple[Arm, Arm]:
    """VAE-0 and VAE-1, all else equal.

    Args:
        build: (`vae0` or `vae1`, data shape) to an untrained model with networks of its own.
        epochs: (quick, paper).
        settings: others of `Arm`.
    """

    def arm(name: str, family: Callable[..., VAE]) -> Arm:
        return Arm(name=name, model=lambda shape: build(family, shape), epochs=epochs, **settings)

    return arm(FIXED, vae0), arm(LEARNED, vae1)


def activity(data: str, trials: Trials, x: Tensor) -> dict[str, Any]:
    """A row of the table: medians over the replicates, of the training data.

    A latent is active with a mean encoder entropy below 1.0 nat, as in the paper; by KL, as in `vaentropy diagnose`,
    with at least 0.01 nats and 1 % of the largest.

    Args:
        data: name of the data.
        trials: trained on them.
        x: (N, *data_shape), the training data.
    """
    row, tables = summary(trials), _tables(trials)
    active = [int((table.encoder_entropy < ACTIVE_BELOW).sum()) for table in tables]
    by_kl = [len(table) - len(table.which("collapsed")) for table in tables]
    return {
        "data": data,
        "training": row.pop("training"),
        "latents": len(tables[0]),
        "active": statistics.median(active),
        "active_by_kl": statistics.median(by_kl),
        "variance": statistics.median(map(_variance, trials.models)),
        "optimal_variance": statistics.median(map(_optimal_variance, trials.histories)),
        "mean_variance_of_features": float(x.double().var(0, correction=0).mean()),
        **row,
    }


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the table says about collapse, in one sentence."""
    fixed, learned = ([row for row in rows if row["training"] == name] for name in (FIXED, LEARNED))
    pairs = list(zip(fixed, learned, strict=True))
    each = ", ".join(f"{a['data']} {a['active']:g} and {b['active']:g} of {a['latents']}" for a, b in pairs)
    more = sum(b["active"] > a["active"] for a, b in pairs)
    how_many = "on none" if not more else f"on {more}"
    return (
        f"Latents with an encoder entropy below {ACTIVE_BELOW} nat, with σ² = 1 fixed and with σ² learned: {each}; "
        f"learning σ² keeps more latents active {how_many} of {len(pairs)} data sets."
    )


def plot_activity(every: Mapping[str, Sequence[Trials]]) -> Figure:
    """Encoder entropies of the latents from the largest to the smallest, a panel for each data set; medians."""
    with styled():
        figure = new_figure(max(2, len(every)) * PANEL_WIDTH, HEIGHT)
        panels = figure.subplots(1, len(every), squeeze=False)[0]
        for axes, (data, compared) in zip(panels, every.items(), strict=True):
            axes.axhline(PRIOR_ENTROPY, color=PALE, label=f"prior, {PRIOR_ENTROPY:.2f} nats")
            axes.axhline(ACTIVE_BELOW, color=PALE, linestyle=LINE_STYLES[1], label=f"active below {ACTIVE_BELOW} nat")
            for number, trials in enumerate(compared):
                values = np.median([np.sort(table.encoder_entropy.numpy())[::-1] for table in _tables(trials)], axis=0)
                look = {"color": COLOURS[number], "linestyle": LINE_STYLES[number], "marker": MARKERS[number]}
                axes.plot(np.arange(1, len(values) + 1), values, markersize=4, label=trials.arm.name, **look)
            axes.set(title=data, xlabel="latents, by their entropy")
            whole_numbers(axes.xaxis)
        panels[0].set_ylabel("encoder entropy, nats")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=SMALL)
    return figure


def _tables(trials: Trials) -> list[Latents]:
    tables = []
    for model, history in zip(trials.models, trials.histories, strict=True):
        table = latents_of(model, _evaluated(history))
        assert table is not None  # VAE-0 and VAE-1 have normal posteriors and priors
        tables.append(table)
    return tables


def _evaluated(history: History) -> Evaluation:
    assert history.train is not None  # every training ends with one
    return history.train


def _variance(model: VAE) -> float:
    """σ², which no features change."""
    assert isinstance(model.head, GaussianHead)
    return float(model.head.log_variance_at(torch.empty(0)).detach().exp())


def _optimal_variance(history: History) -> float:
    optimum = _evaluated(history).optimal_variance
    assert optimum is not None  # of normal likelihoods
    return optimum
