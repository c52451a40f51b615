"""Wrong arguments of the figures."""

from typing import Any

import torch

import vaentropy as ve
from vaentropy.data.scaling import Scaling

from .case import Case, calling, numbers

__all__ = ["PICTURES"]

X = torch.from_numpy(numbers()).float()
OTHER: Any = "other"  # of a wrong type, as users without a type checker pass it


def looking(name: str, *says: str, model: Any = None, data: Any = X, **options: Any) -> Case:
    """`look` at a model with three features, on twenty points unless told otherwise."""

    def call() -> Any:
        from vaentropy.figures.view import look

        torch.manual_seed(0)
        return look(ve.vae1(3, 2, (4,)) if model is None else model, data, **options)

    return calling(f"look-{name}", call, *says)


def drawing(name: str, plot: str, *says: str, given: Any = None, data: Any = X, **options: Any) -> Case:
    """A figure of a view of those points, or of whatever is given instead."""

    def call() -> Any:
        from vaentropy import figures
        from vaentropy.figures.view import look

        torch.manual_seed(0)
        view = look(ve.vae1(data.shape[1], 2, (4,)), data) if given is None else given
        return getattr(figures, plot)(view, **options)

    return calling(f"figure-{name}", call, *says)


def history(*rows: dict[str, Any]) -> Any:
    return ve.training.History([{"epoch": n, "running_elbo": 1.0, **row} for n, row in enumerate(rows, start=1)])


def evaluation(num_points: int = 20) -> Any:
    torch.manual_seed(0)
    return ve.evaluate(ve.vae1(3, 2, (4,)), X[:num_points])


def ragged() -> Any:
    """A history whose epochs have different numbers of latents."""
    names = ("running_encoder_entropy_per_latent", "running_kl_per_latent")
    return history(*({name: [0.5] * latents for name in names} for latents in (2, 3)))


PICTURES = [
    looking("model", "model of type str", "posterior", model=OTHER),
    looking("data-text", "str given as data", data=OTHER),
    looking("data-batches", "generator given as data", "picked", data=(row for row in [X])),
    looking("data-list", "list given as data", data=[1.0, 2.0]),
    looking("data-nothing", "no data points", data=X[:0]),
    looking("data-number", "single number", data=X.sum()),
    looking("data-shape", "(20, 2)", "(N, 3)", data=X[:, :2]),
    looking("data-infinite", "row 0, column 0", data=X / 0),
    looking("labels-number", "labels of shape ()", labels=3),
    looking("labels-few", "shape (2,)", "20 data points", labels=[1, 2]),
    looking("labels-one-hot", "shape (20, 10)", "one label", labels=torch.zeros(20, 10)),
    looking("labels-ragged", "labels=[[1], [2, 3]]", labels=[[1], [2, 3]]),
    looking("columns-text", "columns='abc'", columns="abc"),
    looking("columns-numbers", "columns=[1, 2, 3]", columns=[1, 2, 3]),
    looking("columns-few", "1 names", "3 features", columns=["a"]),
    looking("scaling", "scaling=2.0", "Scaling", scaling=2.0),
    looking("scaling-shape", "(4,)", scaling=Scaling(torch.ones(4), torch.ones(4))),
    looking("missing", "missing='other'", "ignore", missing=OTHER),
    looking("points-0", "num_points=0", num_points=0),
    looking("points-text", "num_points='other'", num_points=OTHER),
    looking("latents-fraction", "num_latents=1.5", num_latents=1.5),
    looking("steps-1", "num_steps=1", num_steps=1),
    looking("seed", "seed='other'", seed=OTHER),
    *(
        drawing(f"{plot}-other", f"plot_{plot}", "view='other'", "look(model, x)", given=OTHER)
        for plot in ("latents", "posteriors", "reconstructions", "samples", "points", "traversals")
    ),
    drawing("scales-other", "plot_scales", "scales='other'", "Evaluation", given=OTHER),
    drawing("residuals-other", "plot_residuals", "evaluation='other'", given=OTHER),
    *(
        calling(f"figure-{plot}-other", lambda plot=plot: _drawn(plot, OTHER), says, expected)
        for plot, says, expected in (
            ("terms", "evaluation='other'", "an Evaluation"),
            ("estimates", "evaluation='other'", "an Evaluation"),
            ("training", "histories[0]='o'", "a History"),
            ("latent_entropies", "history='other'", "a History"),
        )
    ),
    calling("figure-estimates-of-one-point", lambda: _drawn("estimates", evaluation(1)), "1 data points", "more"),
    calling("figure-training-number", lambda: _drawn("training", 3), "histories=3", "a History"),
    calling("figure-training-nothing", lambda: _drawn("training", []), "without epochs", "fit"),
    calling("figure-training-no-epochs", lambda: _drawn("training", history()), "without epochs", "fit"),
    calling("figure-training-among-others", lambda: _drawn("training", [history({}), 3]), "histories[1]=3"),
    *(
        calling(f"figure-labels-{name}", lambda labels=labels: _labelled(labels), says, "list of 1 names")
        for name, labels, says in (
            ("text", "a", "labels='a'"),
            ("number", 5, "labels=5"),
            ("numbers", [5], "labels=[5]"),
            ("many", ["a", "b"], "labels=['a', 'b']"),
        )
    ),
    calling("figure-latent-entropies-without", lambda: _drawn("latent_entropies", history({})), "at most 256 latents"),
    calling("figure-latent-entropies-ragged", lambda: _drawn("latent_entropies", ragged()), "several lengths"),
    drawing("points-of-many", "plot_points", "(4,)", "plot_reconstructions", data=torch.cat([X, X[:, :1]], 1)),
    drawing("shape-text", "plot_reconstructions", "shape='other'", shape=OTHER),
    drawing("shape-number", "plot_samples", "shape=3", shape=3),
    drawing("shape-fraction", "plot_traversals", "shape=(1.0, 3)", shape=(1.0, 3)),
    drawing("shape-product", "plot_reconstructions", "shape=(2, 2)", "(3,)", shape=(2, 2)),
    drawing("shape-channels", "plot_reconstructions", "shape=(2, 1, 2)", shape=(2, 1, 2)),
    drawing("pictures-0", "plot_reconstructions", "num_pictures=0", num_pictures=0),
    drawing("pictures-text", "plot_samples", "num_pictures='other'", num_pictures=OTHER),
    calling("figure-residuals-columns", lambda: _residuals(columns=OTHER), "columns='other'"),
    calling("figure-residuals-columns-few", lambda: _residuals(columns=["a"]), "1 names", "3 features"),
    calling("figure-residuals-shape", lambda: _residuals(shape=(5, 5)), "shape=(5, 5)"),
]


def _drawn(plot: str, given: Any, **options: Any) -> Any:
    from vaentropy import figures

    return getattr(figures, f"plot_{plot}")(given, **options)


def _labelled(labels: Any) -> Any:
    return _drawn("training", [history({})], labels=labels)


def _residuals(**options: Any) -> Any:
    from vaentropy import figures

    return figures.plot_residuals(evaluation(), **options)
