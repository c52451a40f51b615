"""Wrong parameters and arguments of the estimator for scikit-learn; wrong data are refused by scikit-learn itself."""

from typing import Any

import numpy as np
import torch

import vaentropy as ve

from .case import Case, calling, numbers

__all__ = ["ESTIMATORS"]

X = numbers()
OTHER: Any = "other"


def estimator(**parameters: Any) -> Any:
    from vaentropy.integrations.sklearn import GaussianVAE

    return GaussianVAE(**{"epochs": 1, "hidden": (4,), "random_state": 0, **parameters})


def fitting(name: str, *says: str, **parameters: Any) -> Case:
    """`fit` of an estimator to twenty points with three features."""
    return calling(f"estimator-{name}", lambda: estimator(**parameters).fit(X), *says)


ESTIMATORS = [
    fitting("components-0", "n_components=0", "at least 1", n_components=0),
    fitting("components-fraction", "n_components=0.95", "whole number", n_components=0.95),
    fitting("components-none", "n_components=None", n_components=None),
    fitting("components-bool", "n_components=True", n_components=np.bool_(True)),
    fitting("model-unknown", "model='vae9'", "vae1", "function", model="vae9"),
    fitting("model-none", "model=NoneType", "vae1", "function", model=None),
    fitting("model-made", "model=VAE", "function", model=ve.vae1(3, 2, (4,))),
    fitting("model-makes-none", "model(3, 2)=None", "a new VAE", model=lambda features, components: None),
    fitting("model-makes-linear", "model(3, 2)=LinearVAE", "a new VAE", model=ve.LinearVAE),
    fitting("model-other-latents", "latents (5,)", "(2,)", model=lambda features, _: ve.vae1(features, 5)),
    fitting("model-other-shape", "data (5,)", "(3,)", model=lambda _, components: ve.vae1(5, components)),
    fitting("hidden-0", "hidden=(0,)", hidden=(0,)),
    fitting("hidden-number", "hidden=5", hidden=5),
    fitting("hidden-text", "hidden='ab'", hidden="ab"),
    fitting("epochs-0", "epochs=0", epochs=0),
    fitting("epochs-fraction", "epochs=2.0", epochs=2.0),
    fitting("batch-size-none", "batch_size=None", batch_size=None),
    fitting("learning-rate-text", "learning_rate='adaptive'", learning_rate="adaptive"),
    fitting("learning-rate-nan", "learning_rate=nan", learning_rate=np.nan),
    fitting("schedule", "schedule='other'", "one_cycle", schedule=OTHER),
    fitting("variances", "variances='other'", "analytic", variances=OTHER),
    fitting("beta-text", "beta='other'", beta=OTHER),
    fitting("clip-norm-0", "clip_norm=0", clip_norm=0),
    fitting("patience-0", "patience=0", patience=0),
    fitting("patience-text", "patience='other'", patience=OTHER),
    fitting("validation-all", "validation_fraction=1", "between 0 and 1", patience=1, validation_fraction=1.0),
    fitting("validation-none", "validation_fraction=None", patience=1, validation_fraction=None),
    fitting("missing", "missing='drop'", "ignore", missing="drop"),
    fitting("draws-0", "n_draws=0", n_draws=0),
    fitting("draws-text", "n_draws='other'", n_draws=OTHER),
    fitting("device", "device='other'", "torch", device=OTHER),
    fitting("device-none", "device=None", "torch", device=None),
    calling(
        "estimator-all-missing",
        lambda: estimator(missing="ignore").fit(np.full((4, 3), np.nan)),
        "every value is missing",
    ),
    calling("estimator-latents", lambda: estimator().fit(X).inverse_transform(X), "(20, 3)", "latents (N, 2)"),
    calling("estimator-draws-later", lambda: estimator().fit(X).set_params(n_draws=OTHER).score(X), "n_draws='other'"),
    calling("estimator-sample-0", lambda: estimator().fit(X).sample(0), "n_samples=0", "at least 1"),
    calling("estimator-sample-text", lambda: estimator().fit(X).sample(OTHER), "n_samples='other'"),
    calling("estimator-expectation", lambda: estimator().fit(X).evaluate(X, expectation=OTHER), "expectation='other'"),
    calling(
        "estimator-weights-negative",
        lambda: estimator().fit(X).score(X, sample_weight=-np.ones(20)),
        "sample_weight",
        "at least 0",
    ),
    calling("estimator-weights-few", lambda: estimator().fit(X).score(X, sample_weight=np.ones(19)), "19"),
    calling("estimator-weights-text", lambda: estimator().fit(X).score(X, sample_weight=OTHER), "sample_weight"),
    calling(
        "estimator-weights-tensor",
        lambda: estimator().fit(X).evaluate(X, sample_weight=torch.ones(20, 1)),
        "sample_weight",
        "(20, 1)",
    ),
]
