"""`GaussianVAE` keeps scikit-learn's contract, and its numbers are those of the model."""

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import vaentropy as ve
from vaentropy.data import pca
from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.integrations.sklearn import GaussianVAE
from vaentropy.networks import MLPDecoder, MLPEncoder

TABLE, FACTORS = pca(300, 5, 2, noise=0.3)
X = TABLE.numpy()
QUICK = {"epochs": 2, "hidden": (4,)}
QUADRATURE = np.polynomial.hermite_e.hermegauss(60)


def per_feature(n_features, n_components):
    networks = MLPEncoder(n_features, (4,)), MLPDecoder((4,))
    likelihood = ve.Gaussian("per_feature")
    return ve.VAE(*networks, data_shape=n_features, latent_dim=n_components, likelihood=likelihood)


MODELS = {
    "vae0": {"model": partial(ve.vae0, hidden=(4,), variance=0.1)},
    "vae1": {},
    "vae2": {"model": "vae2"},
    "vae3": {"model": "vae3"},
    "own": {"model": per_feature},
}


def quick(n_components=2, **parameters):
    return GaussianVAE(n_components, **{**QUICK, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def fitted():
    return quick(1, epochs=20).fit(X)


# The contract.


@parametrize_with_checks([GaussianVAE(epochs=1, hidden=(4,))])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


# These checks mix frames and arrays on purpose.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X .* feature names")
@pytest.mark.parametrize(
    "name",
    [
        "check_dataframe_column_names_consistency",
        "check_transformer_get_feature_names_out",
        "check_transformer_get_feature_names_out_pandas",
        "check_get_feature_names_out_error",
        "check_set_output_transform",
        "check_set_output_transform_pandas",
        "check_set_output_transform_polars",
        "check_global_output_transform_pandas",
        "check_global_set_output_transform_polars",
        "check_inplace_ensure_writeable",
    ],
)
def test_the_checks_that_scikit_learn_keeps_for_its_own_estimators(name):
    getattr(estimator_checks, name)("GaussianVAE", GaussianVAE(**QUICK))


CHECK_ALL = """
import json, sys
from sklearn.utils.estimator_checks import check_estimator
from vaentropy.integrations.sklearn import GaussianVAE
results = check_estimator(GaussianVAE(**json.loads(sys.argv[1])), on_fail=None)
print(json.dumps([[r["check_name"], r["status"], str(r["exception"])] for r in results if r["status"] != "passed"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        QUICK,
        {},
        {**QUICK, "missing": "ignore"},
        {**QUICK, "model": "vae0"},
        {**QUICK, "model": "vae2"},
        {**QUICK, "model": "vae3"},
        {**QUICK, "patience": 3, "variances": "learned"},
    ],
    ids=str,
)
def test_no_check_fails_or_is_skipped_whatever_the_parameters(parameters):
    # The variable is scikit-learn's, without which it skips its checks of the array API.
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    arguments = [sys.executable, "-c", CHECK_ALL, json.dumps(parameters)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# Training.


def test_it_trains_as_fit_does():
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ve.vae1(5, 2, (4,)).double()
    history = ve.fit(model, TABLE, epochs=3, learning_rate=0.01, seed=seed, progress=False)
    estimator = quick(random_state=3, epochs=3, learning_rate=0.01).fit(X)
    assert estimator.evaluation_.elbo == history.train.elbo == estimator.history_.train.elbo
    assert estimator.n_iter_ == 3 and estimator.n_features_in_ == 5
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, estimator.model_.state_dict()[name]), name


def test_float32_stays_float32(fitted):
    single = quick().fit(X.astype(np.float32))
    assert single.model_.latent_mean.weight.dtype == torch.float32
    assert single.sample(3).dtype == single.transform(X.astype(np.float32)).dtype == np.float32
    # Whatever the model computes in.
    assert single.transform(X).dtype == fitted.transform(X).dtype == np.float64
    assert fitted.inverse_transform(fitted.transform(X.astype(np.float32))).dtype == np.float32


def test_equal_seeds_give_equal_models_and_global_generators_are_left_alone():
    torch_before, numpy_before = torch.get_rng_state(), copy.deepcopy(np.random.get_state())
    first, second, other = quick().fit(X), quick().fit(X), quick(random_state=1).fit(X)
    scores = [estimator.score(X) for estimator in (first, second, other)]
    assert scores[0] == scores[1] != scores[2]
    assert np.array_equal(first.sample(3), second.sample(3))
    assert torch.equal(torch.get_rng_state(), torch_before)
    # Its numbers, and how many of them are used up.
    assert all(np.array_equal(now, before) for now, before in zip(np.random.get_state(), numpy_before, strict=True))


def test_without_a_seed_numpys_global_generator_gives_it():
    before = np.random.get_state()
    try:
        scores = []
        for seed in (0, 0, 1):
            np.random.seed(seed)
            scores.append(quick(random_state=None).fit(X).score(X))
    finally:
        np.random.set_state(before)
    assert scores[0] == scores[1] != scores[2]


def test_threads_do_not_disturb_each_other():
    seeds = range(4)
    alone = [quick(random_state=seed).fit(X).score(X) for seed in seeds]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: quick(random_state=seed).fit(X).score(X), seeds))
    assert together == alone


def test_patience_holds_rows_out():
    estimator = quick(epochs=60, patience=1, learning_rate=0.05, validation_fraction=0.2).fit(X[:50])
    assert estimator.history_.held_out.num_points == 10 and estimator.evaluation_.num_points == 40
    assert estimator.n_iter_ < 60 and "held-out" in estimator.history_.stopped


def test_two_rows_at_least_are_trained_on():
    """With one, σ² would fall to its floor."""
    for rows, fraction in [(3, 0.9), (20, 0.99)]:
        estimator = quick(epochs=1, patience=1, validation_fraction=fraction).fit(X[:rows])
        assert estimator.evaluation_.num_points == 2
    with pytest.raises(ValueError, match="a minimum of 3 is required"):
        quick(epochs=1, patience=1).fit(X[:2])


def test_numbers_of_numpy_are_numbers():
    plain = quick(2, learning_rate=0.25, hidden=(4, 3), epochs=1).fit(X)
    grid = quick(np.int64(2), learning_rate=np.float32(0.25), hidden=np.array([4, 3]), epochs=np.int32(1)).fit(X)
    assert grid.score(X) == plain.score(X)


# What comes out.


def elbo_by_quadrature(estimator, row, observed):
    """ELBO of one row under a model with one latent, nats, from numpy alone but for the networks."""
    seen = torch.from_numpy(np.where(observed, row, 0.0))[None]
    with torch.no_grad():
        posterior = estimator.model_.posterior(seen)
        mean, scale = posterior.mean.item(), posterior.stddev.item()
        nodes, weights = QUADRATURE
        likelihood = estimator.model_.likelihood(torch.from_numpy(mean + scale * nodes)[:, None])
        means, variances = likelihood.mean.numpy(), likelihood.variance.numpy()
    densities = -0.5 * ((row - means) ** 2 / variances + np.log(2 * np.pi * variances))[:, observed].sum(1)
    kl = 0.5 * (mean**2 + scale**2 - 1) - np.log(scale)
    return weights @ densities / weights.sum() - kl


def test_score_samples_are_elbos(fitted):
    everything = np.full(5, True)
    expected = [elbo_by_quadrature(fitted, row, everything) for row in X[:10]]
    assert np.allclose(fitted.score_samples(X[:10]), expected, rtol=0, atol=0.1)
    precise = copy.deepcopy(fitted).set_params(n_draws=2**10)
    assert np.allclose(precise.score_samples(X[:10]), expected, rtol=0, atol=0.01)


def test_an_elbo_is_below_the_log_likelihood(fitted):
    grid = np.linspace(-8, 8, 4001)
    with torch.no_grad():
        likelihood = fitted.model_.likelihood(torch.from_numpy(grid)[:, None])
        log_joint = likelihood.log_prob(TABLE[:20, None]).numpy() - 0.5 * (grid**2 + np.log(2 * np.pi))
    log_p = np.log(np.exp(log_joint).sum(1) * (grid[1] - grid[0]))
    gap = log_p - copy.deepcopy(fitted).set_params(n_draws=2**10).score_samples(X[:20])
    # It may be above by the error of the average over the posterior.
    assert (gap > -1e-3).all() and 1e-3 < gap.mean() < 1


def test_the_score_of_a_row_does_not_depend_on_the_others(fitted):
    alone = [fitted.score_samples(row[None])[0] for row in X[:5]]
    assert np.allclose(fitted.score_samples(X[4::-1])[::-1], alone, rtol=1e-12)


def test_the_score_is_their_weighted_mean(fitted):
    weights = np.arange(10) % 3
    scores = fitted.score_samples(X[:10])
    assert fitted.score(X[:10]) == pytest.approx(scores.mean(), rel=1e-12)
    repeated = fitted.score(X[:10].repeat(weights, axis=0))
    for given in (weights, weights.tolist(), pd.Series(weights)):
        assert fitted.score(X[:10], sample_weight=given) == pytest.approx(repeated, rel=1e-12)


def test_latents_and_back(fitted):
    latents = fitted.transform(X)
    with torch.no_grad():
        posterior = fitted.model_.posterior(TABLE)
        assert np.allclose(latents, posterior.mean.numpy(), rtol=1e-12)
        decoded = fitted.model_.likelihood(posterior.mean).mean
    assert np.allclose(fitted.inverse_transform(latents), decoded.numpy(), rtol=1e-12)
    with pytest.raises(UsageError, match=r"\(300, 5\) given, expected latents \(N, 1\)"):
        fitted.inverse_transform(X)


def test_samples_are_means_with_noise(fitted):
    means, draws = (fitted.sample(20_000, noise=noise) for noise in (False, True))
    # One seed, so one z for both.
    variance = (draws - means).var(0)
    assert variance == pytest.approx(np.full(5, fitted.model_.head.log_variance.exp().item()), rel=0.05)
    assert np.array_equal(fitted.sample(2), fitted.sample(2))
    random = np.random.RandomState(0)
    assert not np.array_equal(fitted.sample(2, random_state=random), fitted.sample(2, random_state=random))


@pytest.mark.slow
def test_it_reaches_what_the_linear_model_does():
    random = np.random.RandomState(0)
    x = random.normal(size=(400, 2)) @ [[2, 2, 0, 0], [0, 0, 1.5, -1.5]] + 0.5 * random.normal(size=(400, 4))
    # Of several: one in six or so ends with a single factor.
    best = max(
        (
            quick(hidden=(10,), learning_rate=0.02, batch_size=100, epochs=100, random_state=seed).fit(x)
            for seed in (0, 1)
        ),
        key=lambda estimator: estimator.score(x),
    )
    linear = PCA(2).fit(x)
    # That of scikit-learn is the log-likelihood of probabilistic PCA, and these data are drawn from such a model.
    assert linear.score(x) - 0.2 < best.score(x) < linear.score(x) + 0.05
    error = ((x - best.inverse_transform(best.transform(x))) ** 2).mean()
    assert error < 1.2 * ((x - linear.inverse_transform(linear.transform(x))) ** 2).mean()


def test_the_read_outs(fitted):
    evaluation = fitted.evaluate(X)
    assert isinstance(evaluation, ve.Evaluation) and evaluation.mc_stderr.elbo > 0
    assert abs(evaluation.elbo - fitted.score(X)) < 0.05
    weights = np.arange(300) % 2
    weighted = fitted.evaluate(X, sample_weight=weights, expectation=ve.expectation.Frozen())
    halved = fitted.evaluate(X[1::2], expectation=ve.expectation.Frozen())
    assert weighted.elbo == pytest.approx(halved.elbo, rel=1e-12)
    diagnosis = ve.diagnose(fitted.model_, X, progress=False)
    assert diagnosis.findings


# Missing values.


def test_missing_values_are_left_out():
    holes = X.copy()
    holes[::3, 1] = holes[1, 2:] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        quick().fit(holes)
    estimator = quick(1, missing="ignore", n_draws=2**10).fit(holes)
    expected = [elbo_by_quadrature(estimator, row, ~np.isnan(row)) for row in holes[:4]]
    assert np.allclose(estimator.score_samples(holes[:4]), expected, rtol=0, atol=0.01)
    assert np.allclose(estimator.transform(holes), estimator.transform(np.nan_to_num(holes)))
    assert estimator.evaluation_.observed_fraction is not None
    with pytest.raises(ValueError, match="infinity"):
        estimator.transform(np.where(np.isnan(holes), np.inf, holes))


# With the rest of scikit-learn.


@pytest.mark.parametrize(("frame", "kind"), [(pd.DataFrame, "pandas"), (pl.DataFrame, "polars")])
def test_frames_in_and_out(frame, kind):
    given = frame({f"x{column}": X[:, column] for column in range(5)})
    estimator = quick().fit(given)
    assert estimator.feature_names_in_.tolist() == ["x0", "x1", "x2", "x3", "x4"]
    out = estimator.set_output(transform=kind).transform(given)
    assert isinstance(out, frame) and list(out.columns) == ["gaussianvae0", "gaussianvae1"]
    assert np.array_equal(out.to_numpy(), quick().fit(X).transform(X))


def test_a_grid_search_chooses_by_the_held_out_elbo():
    pipeline = make_pipeline(StandardScaler(), quick())
    folds = KFold(2)
    grid = {"gaussianvae__n_components": np.array([1, 2]), "gaussianvae__learning_rate": np.logspace(-3, -2, 2)}
    search = GridSearchCV(pipeline, grid, cv=folds, error_score="raise").fit(X)
    first = clone(pipeline).set_params(gaussianvae__n_components=1, gaussianvae__learning_rate=1e-3)
    scores = [clone(first).fit(X[train]).score(X[held_out]) for train, held_out in folds.split(X)]
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(np.mean(scores), rel=1e-12)
    assert search.best_params_["gaussianvae__n_components"] in (1, 2)
    assert search.score(X) == search.best_estimator_.score(X)


@pytest.mark.slow
def test_a_grid_search_in_processes_gives_the_same():
    grid = {"n_components": [1, 2], "model": ["vae1", "vae2"]}
    one, two = (GridSearchCV(quick(), grid, cv=3, n_jobs=n_jobs, error_score="raise").fit(X) for n_jobs in (1, 2))
    assert np.array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


@pytest.mark.parametrize(
    "parameters",
    # vae2 has a parametrised layer, and a function goes by its name.
    [pytest.param(MODELS[name], id=name, marks=() if name in ("vae2", "own") else pytest.mark.slow) for name in MODELS],
)
def test_pickled_copied_and_cloned(parameters, tmp_path):
    estimator = quick(**parameters).fit(X)
    # It is remade as it was fitted, whatever it is told to be next time.
    estimator.set_params(n_components=4)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    copies = [
        pickle.loads(pickle.dumps(estimator)),
        copy.deepcopy(estimator),
        joblib.load(tmp_path / "estimator.joblib"),
        joblib.load(tmp_path / "estimator.joblib", mmap_mode="r"),
    ]
    for other in copies:
        assert np.array_equal(other.transform(X), estimator.transform(X))
        assert np.array_equal(other.score_samples(X), estimator.score_samples(X))
        assert other.evaluation_.elbo == estimator.evaluation_.elbo and not other.model_.training
        assert other.n_components == 4 and other.get_feature_names_out().size == 2
    anew = clone(estimator.set_params(n_components=2))
    with pytest.raises(NotFittedError):
        anew.transform(X)
    assert anew.fit(X).score(X) == estimator.score(X)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu():
    estimator = quick(device="cuda").fit(X)
    assert estimator.model_.latent_mean.weight.is_cuda and np.isfinite(estimator.sample(2)).all()
    unpickled = pickle.loads(pickle.dumps(estimator))
    assert not unpickled.model_.latent_mean.weight.is_cuda
    assert np.allclose(unpickled.score_samples(X), estimator.score_samples(X), rtol=1e-6)
    assert np.allclose(
        unpickled.inverse_transform(unpickled.transform(X)), estimator.inverse_transform(estimator.transform(X))
    )


# Mistakes; more of them are in tests/bad_inputs.


def test_a_function_that_makes_something_else():
    with pytest.raises(UsageError, match=r"model\(5, 2\) made a VAE of data \(5,\) and latents \(3,\)"):
        quick(model=lambda features, components: ve.vae1(features, 3, (4,))).fit(X)


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "vaentropy.integrations.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn .* pip install 'vaentropy\[sklearn\]'"):
        importlib.import_module("vaentropy.integrations.sklearn")
