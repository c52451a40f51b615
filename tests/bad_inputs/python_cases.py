"""Wrong arguments from Python: types and values, for every public function."""

from typing import Any

import numpy as np
import torch

import vaentropy as ve
from vaentropy import adapters, loggers
from vaentropy.engines import Here, Processes
from vaentropy.evaluation import Accumulator

from .case import Case, calling, numbers, text
from .run_cases import run

__all__ = ["PYTHON"]

X = torch.from_numpy(numbers()).float()
OTHER: Any = "other"  # of a wrong type, as users without a type checker pass it
NONE: Any = None


def model(latent_dim: int = 2) -> Any:
    torch.manual_seed(0)
    return ve.vae1(3, latent_dim, (4,))


def fitting(name: str, *says: str, data: Any = X, make: Any = None, **options: Any) -> Case:
    """`fit` of a model with three features, on twenty points unless told otherwise."""
    options = {"epochs": 1, "progress": False, **options}
    return calling(f"fit-{name}", lambda: ve.fit(model(), data, **options), *says, make=make)


def replicating(name: str, *says: str, data: Any = X, models: Any = None, **options: Any) -> Case:
    """`fit_replicates` of two models, unless told otherwise."""
    options = {"epochs": 1, "progress": False, **options}
    given = models or (lambda: [model(), model()])
    return calling(f"fit-replicates-{name}", lambda: ve.fit_replicates(given(), data, **options), *says)


def evaluating(name: str, *says: str, data: Any = X, **options: Any) -> Case:
    return calling(f"evaluate-{name}", lambda: ve.evaluate(model(), data, **options), *says)


def loading(name: str, given: Any, *says: str, make: Any = None, **options: Any) -> Case:
    return calling(f"data-{name}", lambda: ve.data.load(given, **options), *says, make=make)


def frame(**columns: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(columns)


def with_nan() -> torch.Tensor:
    x = X.clone()
    x[4, 2] = torch.nan
    return x


def linear() -> Any:
    return ve.LinearVAE(3, 1)


MODELS = [
    calling("vae-shape-0", lambda: ve.vae1(0, 2), "data_shape", "from 1"),
    calling("vae-shape-negative", lambda: ve.vae1(-3, 2), "data_shape", "from 1"),
    calling("vae-shape-text", lambda: ve.vae1(OTHER, 2), "data_shape", "other"),
    calling("vae-shape-none", lambda: ve.vae1(NONE, 2), "data_shape", "None"),
    calling("vae-shape-fraction", lambda: ve.vae1(3.0, 2), "data_shape", "3.0"),  # type: ignore[arg-type]
    calling("vae-shape-bool", lambda: ve.vae1(True, 2), "data_shape", "True"),
    calling("vae-latent-0", lambda: ve.vae2(3, 0), "latent_dim", "at least 1"),
    calling("vae-latent-fraction", lambda: ve.vae3(3, 2.0), "latent_dim", "2.0"),  # type: ignore[arg-type]
    calling("vae-latent-text", lambda: ve.vae0(3, OTHER), "latent_dim", "other"),
    calling("vae-hidden-number", lambda: ve.vae1(3, 2, 5), "hidden=5"),  # type: ignore[arg-type]
    calling("vae-hidden-0", lambda: ve.vae1(3, 2, (0,)), "hidden=(0,)"),
    calling("vae-hidden-text", lambda: ve.vae1(3, 2, "ab"), "hidden"),  # type: ignore[arg-type]
    calling("vae-hidden-empty", lambda: ve.vae1(3, 2, ()), "hidden=()"),
    calling("vae0-variance-0", lambda: ve.vae0(3, 2, variance=0), "variance=0", "positive"),
    calling("vae0-variance-nan", lambda: ve.vae0(3, 2, variance=float("nan")), "variance=nan", "positive"),
    calling("vae0-variance-array", lambda: ve.vae0(3, 2, variance=np.ones(3)), "variance"),  # type: ignore[arg-type]
    calling("vae2-columns", lambda: ve.vae2(3, 2, columns=OTHER), "columns='other'", "penalty"),
    calling("vae-networks", lambda: ve.vae1(3, 2, networks=OTHER), "networks"),
    calling("vae-encoder", lambda: ve.VAE(OTHER, OTHER, data_shape=3, latent_dim=2), "encoder"),
    calling(
        "vae-likelihood",
        lambda: ve.VAE(*_networks(), data_shape=3, latent_dim=2, likelihood=OTHER),
        "likelihood",
        "Gaussian",
    ),
    calling("vae-prior", lambda: ve.VAE(*_networks(), data_shape=3, latent_dim=2, prior=OTHER), "prior", "Normal"),
    calling("gaussian-variance", lambda: ve.Gaussian(OTHER), "variance='other'", "per_feature"),
    calling("gaussian-floor-text", lambda: ve.Gaussian(floor=OTHER), "floor='other'"),
    calling("gaussian-floor-nan", lambda: ve.Gaussian(floor=float("nan")), "floor=nan"),
    calling("monte-carlo-0", lambda: ve.MonteCarlo(0), "num_samples=0"),
    calling("monte-carlo-text", lambda: ve.MonteCarlo(OTHER), "num_samples='other'"),
    calling("monte-carlo-bool", lambda: ve.MonteCarlo(True), "num_samples=True"),
    calling("monte-carlo-huge", lambda: ve.MonteCarlo(10**30), "num_samples=1000000"),
    calling("monte-carlo-seed-text", lambda: ve.MonteCarlo(2, OTHER), "seed='other'"),
    calling("monte-carlo-seed-none", lambda: ve.MonteCarlo(2, NONE), "seed=None"),
    calling("monte-carlo-seed-negative", lambda: ve.MonteCarlo(2, -1), "seed=-1"),
    calling("linear-dim", lambda: ve.LinearVAE(OTHER, 2), "data_dim='other'"),
    calling("linear-latents", lambda: ve.LinearVAE.optimum(X, OTHER), "latent_dim='other'"),
    calling("linear-too-many-latents", lambda: ve.LinearVAE.optimum(X, 3), "3 latents", "fewer"),
    calling("linear-ddof", lambda: ve.LinearVAE.optimum(X, 1, ddof=OTHER), "ddof='other'"),
    calling("linear-eigenvectors", lambda: ve.LinearVAE.optimum(X, 1, eigenvectors=OTHER), "eigenvectors='other'"),
    calling("linear-eigenvector-number", lambda: ve.LinearVAE.optimum(X, 1, eigenvectors=5), "eigenvectors=5"),  # type: ignore[arg-type]
    calling("linear-data", lambda: ve.LinearVAE.optimum(OTHER, 1), "str given as data"),
    calling("linear-nan", lambda: ve.LinearVAE.optimum(with_nan(), 1), "row 4", "column 2", "nan"),
    calling("linear-one-row", lambda: ve.LinearVAE.optimum(X[:1], 1), "rank"),
    calling("from-functions-no-function", lambda: ve.from_functions(OTHER, OTHER), "encode", "'other'"),
    calling("from-functions-variance", lambda: ve.from_functions(abs, abs, variance=OTHER), "variance='other'"),
    calling("from-functions-negative", lambda: ve.from_functions(abs, abs, variance=-1.0), "variance=-1.0"),
    calling("from-functions-prior", lambda: ve.from_functions(abs, abs, prior=OTHER), "prior", "Distribution"),
    calling("model-encode-shape", lambda: model().encode(torch.zeros(4, 5)), "(4, 5)", "(N, 3)"),
    calling("model-encode-text", lambda: model().encode(OTHER), "str", "Tensor"),
    calling("model-decode-shape", lambda: model().decode(torch.zeros(4, 5)), "(4, 5)", "(N, 2)"),
    calling("model-sample-negative", lambda: model().sample(-1), "num_samples=-1"),
    calling("model-sample-text", lambda: model().sample(OTHER), "num_samples='other'"),
    calling("model-sample-seed", lambda: model().sample(2, seed=OTHER), "seed='other'"),
    calling("model-encode-missing", lambda: model().encode(X, missing="ignored"), "missing='ignored'", "'ignore'"),
    calling("model-encode-batch-size", lambda: model().encode(X, batch_size=0), "batch_size=0"),
]


def _networks() -> tuple[Any, Any]:
    from vaentropy.networks import MLPDecoder, MLPEncoder

    return MLPEncoder(3, (4,)), MLPDecoder((4,))


def _normed() -> Any:
    encoder, decoder = _networks()
    encoder = torch.nn.Sequential(encoder, torch.nn.BatchNorm1d(4))
    return ve.VAE(encoder, decoder, data_shape=3, latent_dim=2)


REPLICATES = [
    replicating("models-none", "models=NoneType", "list of VAEs", models=lambda: None),
    replicating("models-one", "models=VAE", "list of VAEs", models=model),
    replicating("models-empty", "models=[]", "at least one", models=lambda: []),
    replicating("models-text", "models[1]", "'other'", "VAE", models=lambda: [model(), OTHER]),
    replicating("models-differ", "models[1] differs", "latent_shape", models=lambda: [model(), model(3)]),
    replicating("models-the-same", "shares weights", "deepcopy", models=lambda: [model()] * 2),
    replicating("seeds-number", "seeds=3", "a list of 2", seeds=3),
    replicating("seeds-text", "seeds='ab'", "a list of 2", seeds="ab"),
    replicating("seeds-too-few", "1 seeds given for 2 models", seeds=[1]),
    replicating("seeds-negative", "seeds=-1", "from 0", seeds=[0, -1]),
    replicating("seeds-fraction", "seeds=0.5", seeds=[0, 0.5]),
    replicating("rates-too-many", "3 learning_rates given for 2 models", learning_rates=[0.1, 0.2, 0.3]),
    replicating("rates-negative", "learning_rate=-1.0", learning_rates=[0.1, -1.0]),
    replicating("rates-text", "learning_rates='ab'", learning_rates="ab"),
    replicating("rates-none", "learning_rate=None", learning_rates=None),
    replicating("epochs-0", "epochs=0", epochs=0),
    replicating("on-epoch", "on_epoch=5", on_epoch=5),
    replicating("data-nan", "row 4", "column 2", "nan", data=with_nan()),
    replicating("data-text", "str given as data", data="x.npy"),
    replicating("data-loader", "data is a DataLoader", "use fit", data=torch.utils.data.DataLoader(X)),  # type: ignore[arg-type]
    replicating("held-out-shape", "held_out", "(20, 2)", held_out=X[:, :2]),
]

FITS = [
    calling("fit-model-text", lambda: ve.fit(OTHER, X), "str", "VAE"),
    calling("fit-model-linear", lambda: ve.fit(linear(), X), "LinearVAE", "VAE"),
    fitting("data-none", "data", data=None),
    fitting("data-all-missing", "data given", "every value is missing", data=X * np.nan, missing="ignore"),
    calling("fit-bf16-double", lambda: ve.fit(model().double(), X, precision="bf16"), "bf16", "float64", "float32"),
    calling("fit-frozen", lambda: ve.fit(model().requires_grad_(False), X), "requires a gradient"),
    fitting("data-text", "str given as data", data="x.npy"),
    fitting("data-number", "()", "(N, 3)", data=5),
    fitting("data-objects", "object", data=np.array([[1, "a", None]], dtype=object)),
    fitting("data-ragged", "list given as data", data=[[1.0], [1.0, 2.0]]),
    fitting("data-complex", "complex", data=X + 1j),
    fitting("data-sparse", "sparse", data=X.to_sparse()),
    fitting("data-nan", "row 4", "column 2", "nan", data=with_nan()),
    fitting("data-1e308", "row 0", "inf in float32", data=np.full((4, 3), 1e308)),
    fitting("data-no-rows", "(0, 3)", data=X[:0]),
    fitting("data-shape", "(20, 2)", "(N, 3)", data=X[:, :2]),
    fitting("held-out-shape", "held_out", "(20, 2)", held_out=X[:, :2]),
    fitting("held-out-text", "str", held_out="x.npy"),
    fitting("epochs-0", "epochs=0", epochs=0),
    fitting("epochs-text", "epochs='3'", epochs="3"),
    fitting("epochs-fraction", "epochs=2.0", epochs=2.0),
    fitting("epochs-bool", "epochs=True", epochs=True),
    fitting("epochs-none", "epochs=None", epochs=None),
    fitting("batch-size-none", "batch_size=None", batch_size=None),
    fitting("batch-size-0", "batch_size=0", batch_size=0),
    fitting("micro-batch-size-0", "micro_batch_size=0", micro_batch_size=0),
    fitting("micro-batch-size-text", "micro_batch_size='8'", micro_batch_size="8"),
    fitting("micro-batch-size-bool", "micro_batch_size=True", micro_batch_size=True),
    calling(
        "fit-micro-batch-size-batch-norm",
        lambda: ve.fit(_normed(), X, epochs=1, micro_batch_size=5, progress=False),
        "encoder.1 is BatchNorm1d",
        "with micro_batch_size",
        "eval mode",
    ),
    calling(
        "conv-recompute-text",
        lambda: ve.networks.ConvEncoder((1, 8, 8), (4,), recompute=OTHER),
        "recompute='other'",
        "True or False",
    ),
    calling(
        "conv-recompute-rrelu",
        lambda: ve.networks.ConvDecoder((1, 8, 8), (4,), torch.nn.RReLU, recompute=True),
        "RReLU",
        "recompute=True",
    ),
    fitting("learning-rate-text", "learning_rate='fast'", learning_rate="fast"),
    fitting("learning-rate-none", "learning_rate=None", learning_rate=None),
    fitting("learning-rate-bool", "learning_rate=True", learning_rate=True),
    fitting("learning-rate-nan", "learning_rate=nan", learning_rate=float("nan")),
    fitting("momentum-none", "variance_momentum=None", variance_momentum=None),
    fitting("momentum-1", "variance_momentum=1", variance_momentum=1.0),
    fitting("beta-text", "beta='other'", beta="other"),
    fitting("beta-none", "beta=None", beta=None),
    fitting("clip-norm-text", "clip_norm='other'", clip_norm="other"),
    fitting("schedule", "schedule='other'", "one_cycle", schedule="other"),
    fitting("schedule-list", "schedule=['other']", "one_cycle", schedule=["other"]),
    fitting("compile", "compile='yes'", "True, False or None", compile="yes"),
    fitting("precision", "precision='fp16'", "full, bf16", precision="fp16"),
    fitting("precision-list", "precision=['bf16']", "full, bf16", precision=["bf16"]),
    fitting("expectation", "expectation='other'", "MonteCarlo", expectation="other"),
    fitting("evaluation-expectation", "evaluation_expectation=16", "MonteCarlo", evaluation_expectation=16),
    fitting("missing", "missing='drop'", missing="drop"),
    fitting("log-jacobian", "log_jacobian", log_jacobian="other"),
    fitting("log-jacobian-shape", "log_jacobian", "(2,)", "(3,)", log_jacobian=torch.zeros(2)),
    fitting("checkpoints", "checkpoints=5", checkpoints=5),
    fitting("checkpoints-file", "x.csv", checkpoints="x.csv/a", make=text("", "x.csv")),
    fitting("resume-of-nothing", "resume=True", "checkpoints", resume=True),
    fitting("seed-text", "seed='other'", seed="other"),
    fitting("seed-none", "seed=None", seed=None),
    fitting("seed-negative", "seed=-1", seed=-1),
    fitting("seed-huge", "seed=", seed=2**70),
    fitting("on-epoch", "on_epoch='other'", on_epoch="other"),
    fitting("patience", "patience=3", "held-out", patience=3),
]

EVALUATIONS = [
    calling("evaluate-model", lambda: ve.evaluate(OTHER, X), "str", "from_functions"),
    calling("evaluate-model-none", lambda: ve.evaluate(NONE, X), "NoneType", "from_functions"),
    calling(
        "evaluate-log-variance",
        lambda: ve.evaluate(ve.from_functions(lambda x: (x[:, :2], x), lambda z: z, variance=1.0), X),
        "log-variance of shape (20, 3)",
        "(20, 2)",
        "broadcasts",
    ),
    calling(
        "evaluate-shapes",
        lambda: ve.evaluate(ve.from_functions(lambda x: (x, x), lambda z: z, variance=1.0), [X, X[:, :2]]),
        "shape (20, 2)",
        "after data of shape (3,)",
        "one shape",
    ),
    calling("accumulator-waiting", lambda: Accumulator(model()).take(X), "not running", "accumulator.running()"),
    evaluating("data-none", "NoneType", data=None),
    evaluating("data-number", "int", data=5),
    evaluating("data-text", "str", data="abc"),
    evaluating("data-objects", "object", data=np.array([[1, "a", None]], dtype=object)),
    evaluating("data-shape", "(20, 2)", "(N, 3)", data=X[:, :2]),
    evaluating("data-empty", "at least one", data=X[:0]),
    evaluating("data-nan", "row 4", "column 2", data=with_nan()),
    evaluating("data-complex", "complex", data=X + 1j),
    evaluating("all-missing", "every value is missing", data=X * torch.nan, missing="ignore"),
    evaluating("expectation", "expectation='other'", "MonteCarlo", expectation="other"),
    evaluating("batch-size", "batch_size='other'", batch_size="other"),
    evaluating("mode", "mode='other'", mode="other"),
    evaluating("engine", "engine='other'", "Processes(4)", engine=OTHER),
    evaluating("engine-batches", "list given", "leave the engine out", data=[X], engine=Here()),
    evaluating("engine-weights", "19 numbers", "20 data points", sample_weight=torch.ones(19), engine=Here()),
    evaluating("engine-nan", "row 4", "column 2", data=with_nan(), engine=Here()),
    evaluating("engine-bind", "cannot be sent", "one worker", bind=lambda x: (model(), x), engine=Processes(2)),
    evaluating("bind", "bind='other'", bind="other"),
    evaluating("bind-returns-x", "bind returned Tensor", "(model, x)", bind=lambda x: x),
    evaluating("bind-returns-labels", "bind returned (VAE, list)", "(model, x)", bind=lambda x: (model(), [x])),
    evaluating("on-batch", "on_batch='other'", on_batch="other"),
    evaluating("weights-negative", "sample_weight", "at least 0", sample_weight=-torch.ones(20)),
    evaluating("weights-nan", "sample_weight", sample_weight=torch.full((20,), torch.nan)),
    evaluating("weights-zero", "sample_weight", sample_weight=torch.zeros(20)),
    evaluating("weights-few", "sample_weight", "19", sample_weight=torch.ones(19)),
    evaluating("weights-many", "sample_weight", "21", "20", sample_weight=torch.ones(21)),
    evaluating("weights-matrix", "sample_weight", "(20, 1)", sample_weight=torch.ones(20, 1)),
    evaluating("weights-text", "sample_weight", "str", sample_weight="other"),
    evaluating("weights-texts", "sample_weight", "list", sample_weight=["a"] * 20),
    evaluating("weights-number", "sample_weight", "()", sample_weight=3.0),
    evaluating("log-jacobian-nan", "log_jacobian", sample_weight=None, log_jacobian=float("nan")),
    calling("calibrate-model", lambda: ve.calibrate(OTHER, X), "str", "from_functions"),
    calling("calibrate-data", lambda: ve.calibrate(model(), X[:, :2]), "(20, 2)", "(N, 3)"),
    calling("calibrate-weights", lambda: ve.calibrate(model(), X, sample_weight=-torch.ones(20)), "sample_weight"),
    calling("calibrate-expectation", lambda: ve.calibrate(model(), X, expectation=OTHER), "expectation='other'"),
    calling("calibrate-bernoulli", lambda: _calibrate_bernoulli(), "nothing to calibrate"),
    calling("merge-nothing", lambda: ve.Evaluation.merge([]), "at least one"),
    calling("merge-text", lambda: ve.Evaluation.merge([OTHER]), "str", "Evaluation"),
]


def diagnosing(name: str, *says: str, data: Any = X, **options: Any) -> Case:
    """`diagnose` of a model with three features, on twenty points unless told otherwise."""
    return calling(f"diagnose-{name}", lambda: ve.diagnose(model(), data, progress=False, **options), *says)


DIAGNOSES = [
    calling("diagnose-model", lambda: ve.diagnose(OTHER, X), "str", "from_functions"),
    diagnosing("shape", "(20, 2)", "(N, 3)", data=X[:, :2]),
    diagnosing("text", "str", data=OTHER),
    diagnosing("none", "NoneType", data=NONE),
    diagnosing("nothing", "no data points", data=X[:0]),
    diagnosing("nan", "row 4, column 2", data=with_nan()),
    diagnosing("iterator", "list_iterator", "read once", data=iter([X])),
    diagnosing("held-out-iterator", "held_out", "read once", held_out=iter([X])),
    diagnosing("held-out-shape", "(20, 2)", held_out=X[:, :2]),
    diagnosing("optimizer", "optimizer='other'", optimizer=OTHER),
    diagnosing("beta-0", "beta=0", "positive", beta=0.0),
    diagnosing("beta-text", "beta='other'", beta=OTHER),
    diagnosing("tolerance-negative", "tolerance=-1", tolerance=-1.0),
    diagnosing("overfitting-nan", "overfitting=nan", overfitting=float("nan")),
    diagnosing("num-errors-text", "num_errors='other'", num_errors=OTHER),
    diagnosing("distance-0", "distance=0", distance=0.0),
    diagnosing("duplicate-text", "duplicate='other'", duplicate=OTHER),
    diagnosing("collapse-text", "collapse='other'", "paper", collapse=OTHER),
    diagnosing("collapse-none", "collapse=None", collapse=NONE),
    diagnosing("expectation", "expectation='other'", expectation=OTHER),
    diagnosing("num-draws-1", "num_draws=1", num_draws=1),
    diagnosing("batch-size-0", "batch_size=0", batch_size=0),
    diagnosing("mode", "mode='other'", mode=OTHER),
    diagnosing("missing-rule", "missing='other'", missing=OTHER),
    diagnosing("log-jacobian", "log_jacobian", log_jacobian=OTHER),
    diagnosing("bind", "bind='other'", bind=OTHER),
    calling("implied-variance-0", lambda: ve.diagnosis.implied_variance(0.0, data_shape=3), "kl_weight=0"),
    calling(
        "implied-variance-mean", lambda: ve.diagnosis.implied_variance(1.0, data_shape=3, kl="mean"), "latent_shape"
    ),
    calling("implied-variance-how", lambda: ve.diagnosis.implied_variance(1.0, data_shape=3, kl=OTHER), "kl='other'"),
    calling("gradient-check-model", lambda: ve.diagnosis.gradient_check(OTHER, X), "trainable"),
    calling("gradient-check-draws", lambda: ve.diagnosis.gradient_check(model(), X, num_draws=1), "num_draws=1"),
    calling("gradient-check-beta", lambda: ve.diagnosis.gradient_check(model(), X, betas=OTHER), "betas='o'"),
    calling("gradient-check-one-beta", lambda: ve.diagnosis.gradient_check(model(), X, betas=2.0), "betas=2.0", "list"),  # type: ignore[arg-type]
    calling("gradient-check-iterator", lambda: ve.diagnosis.gradient_check(model(), iter([X])), "read once"),  # type: ignore[arg-type]
    calling("gradient-check-betas", lambda: ve.diagnosis.gradient_check(model(), X, betas=[-1.0]), "betas"),
    calling("prune-run-latents", lambda: ve.runs.prune_run("run", latents=[7]), "[7]", "from 0", make=run),
    calling("prune-run-text", lambda: ve.runs.prune_run("run", latents=OTHER), "latents=", "from 0", make=run),
    calling("continue-run-epochs", lambda: ve.runs.continue_run("run", epochs=0), "epochs=0", make=run),
    calling("continue-run-unknown", lambda: ve.runs.continue_run("run", epoch=3), "'epochs'", make=run),
    calling("continue-run-networks", lambda: ve.runs.continue_run("run", hidden=(9,)), "hidden=(9,)", make=run),
]


def _calibrate_bernoulli() -> Any:
    prior = torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2), torch.ones(2)), 1)
    encode = model()
    return ve.calibrate(
        ve.from_functions(
            encode.posterior,
            lambda z: torch.distributions.Independent(torch.distributions.Bernoulli(logits=z @ torch.ones(2, 3)), 1),
            prior=prior,
        ),
        (X > 0).float(),
    )


def selecting(name: str, *says: str, data: Any = X, latent_dims: Any = (1, 2), **options: Any) -> Case:
    """`select` of twenty points with three features."""
    return calling(f"select-{name}", lambda: ve.select(data, latent_dims, **options), *says)


def with_inf() -> torch.Tensor:
    x = X.clone()
    x[13, 1] = torch.inf
    return x


def sweeping(name: str, *says: str, vary: Any = None, make: Any = None, **options: Any) -> Case:
    """`sweep` of a data set that there is, over two numbers of latents."""
    given = {"latent_dim": [1, 2]} if vary is None else vary
    common = ve.runs.RunConfig(data="pca", epochs=1)
    options = {"out": "all", **options}
    return calling(f"sweep-{name}", lambda: ve.runs.sweep(common, given, **options), *says, make=make)


NEWER = '{"schema_version": 99, "config": {}, "vary": {}, "num_seeds": 1}'
ELSEWHERE = '{"schema_version": 1, "config": {}, "vary": {"../latent_dim": [1]}, "num_seeds": 1}'
SWEEPS = [
    sweeping("vary-text", "vary='other'", "latent_dim", vary=OTHER),
    sweeping("vary-unknown", "'latent_dimm'", "did you mean 'latent_dim'", vary={"latent_dimm": [1]}),
    sweeping("vary-number", "unknown setting 5", vary={5: [1]}),
    sweeping("vary-one-value", "latent_dim=3", "a list", vary={"latent_dim": 3}),
    sweeping("vary-nothing", "latent_dim=[]", "one or more", vary={"latent_dim": []}),
    sweeping("vary-wrong-value", "latent_dim=0,seed=0", "at least 1", vary={"latent_dim": [1, 0]}),
    sweeping("vary-null", "latent_dim=null,seed=0", vary={"latent_dim": [1, None]}),
    sweeping("vary-wrong-type", "'two'", "a whole number", vary={"latent_dim": [1, "two"]}),
    sweeping("vary-object", "model=", "expected one of", vary={"model": ["vae1", "<object>"]}),
    sweeping("vary-twice", "given twice", vary={"latent_dim": [1, 1]}),
    sweeping("vary-too-much", "10,000,000", "at most 10,000", vary={"epochs": range(1, 10_000_001)}),
    sweeping("seeds-0", "num_seeds=0", num_seeds=0),
    sweeping("seeds-fraction", "num_seeds=1.5", num_seeds=1.5),
    sweeping("seeds-and-seed", "a varied seed", vary={"seed": [1, 2]}, num_seeds=2),
    sweeping("engine", "engine='other'", "Processes(4)", engine=OTHER),
    sweeping("on-run", "on_run=5", "a function", on_run=5),
    sweeping("out-number", "out=5", "a path", out=5),
    sweeping("out-file", "is not a folder", make=text("mine", "all")),
    sweeping("out-in-use", "is not an empty folder", make=text("mine", "all/mine.txt"), overwrite=True),
    sweeping("out-damaged", "all/sweep.json", "put it back", make=text("{", "all/sweep.json")),
    sweeping("out-newer", "newer vaentropy", make=text(NEWER, "all/sweep.json")),
    sweeping("out-elsewhere", "varies ../latent_dim, not latent_dim", make=text(ELSEWHERE, "all/sweep.json")),
    sweeping("data", "'nope'", vary={"data": ["nope"]}),
    sweeping("device", "device='abacus'", vary={"device": ["abacus"]}),
    sweeping("network", "network=conv,seed=0", vary={"network": ["conv"]}),
]

SELECTIONS = [
    selecting("engine", "engine='other'", "Processes(4)", engine=OTHER),
    selecting(
        "engine-lambda", "cannot be sent", "one worker", model=lambda h: ve.vae1(3, h, (4,)), engine=Processes(2)
    ),
    selecting("latent-dims-number", "latent_dims=3", "range(1, 7)", latent_dims=3),
    selecting("latent-dims-one", "latent_dims=[2]", "two or more", latent_dims=[2]),
    selecting("latent-dims-twice-the-same", "latent_dims=[2, 2]", "two or more", latent_dims=[2, 2]),
    selecting("latent-dims-text", "latent_dims='12'", latent_dims="12"),
    selecting("latent-dims-texts", "latent_dims='a'", "whole number", latent_dims=["a", "b"]),
    selecting("latent-dims-lists", "latent_dims", latent_dims=[[1], [2]]),
    selecting("latent-dims-0", "latent_dims=0", "at least 1", latent_dims=(0, 1)),
    selecting("latent-dims-negative", "latent_dims=-1", "at least 0", latent_dims=(-1, 1), model="linear"),
    selecting("latent-dims-fraction", "latent_dims=1.5", latent_dims=(1, 1.5)),
    selecting("latent-dims-bool", "latent_dims=True", latent_dims=(True, 2)),
    selecting("latent-dims-none", "latent_dims=None", latent_dims=None),
    selecting("all-impossible", "no upper bound", latent_dims=(3, 4), model="linear"),
    selecting("model-unknown", "model='vae9'", "vae1", "linear", model="vae9"),
    selecting("model-number", "int", "lambda h", model=5),
    selecting("model-none", "NoneType", "lambda h", model=None),
    selecting("model-vae", "VAE", "lambda h", model=ve.vae1(3, 2, (4,))),
    selecting("model-makes-linear", "model(1) returned LinearVAE", "VAE", model=lambda h: ve.LinearVAE(3, h)),
    selecting("model-makes-none", "model(1) returned NoneType", model=lambda h: None),
    selecting("model-other-latents", "model(2)", "1 latents", model=lambda h: ve.vae1(3, 1, (4,))),
    selecting("model-other-shape", "model(1)", "(5,)", "(3,)", model=lambda h: ve.vae1(5, h, (4,))),
    selecting("model-same-twice", "the same model twice", "new VAE", model=[None, *map(model, (1, 2))].__getitem__),
    selecting("held-out-1", "held_out", "[0, 1)", held_out=1.0),
    selecting("held-out-negative", "held_out", "-0.5", held_out=-0.5),
    selecting("held-out-nan", "held_out", "nan", held_out=float("nan")),
    selecting("held-out-all", "leaves none to train on", data=X[:1]),
    selecting("held-out-shape", "held_out", "(20, 2)", "(M, 3)", held_out=X[:, :2]),
    selecting("held-out-text", "str", held_out="x.npy"),
    selecting("held-out-nan-row", "held_out", "row 4", "column 2", held_out=with_nan()),
    selecting("data-none", "NoneType", data=None),
    selecting("data-text", "str given as data", data="x.npy"),
    selecting("data-vector", "(20,)", "(N, features, ...)", data=X[:, 0]),
    selecting("data-empty", "(0, 3)", data=X[:0]),
    selecting("data-nan", "data: row 4", "column 2", "nan", data=with_nan()),
    selecting("data-inf-linear", "data: row 13", "column 1", "inf", data=with_inf(), model="linear"),
    selecting("data-nan-linear", "data: row 4", "column 2", data=with_nan(), model="linear"),
    selecting("data-loader", "DataLoader", data=torch.utils.data.DataLoader(X)),  # type: ignore[arg-type]
    selecting("data-images-linear", "(16, 3, 2, 2)", "flatten", data=torch.rand(20, 3, 2, 2), model="linear"),
    selecting("num-seeds-0", "num_seeds=0", num_seeds=0),
    selecting("num-seeds-linear", "num_seeds", "linear", num_seeds=2, model="linear"),
    selecting("epochs-linear", "epochs", "linear", epochs=2, model="linear"),
    selecting("seed-text", "seed='other'", seed="other"),
    selecting("seed-negative", "seed=-1", seed=-1),
    selecting("seed-last", "seed=", seed=2**64 - 1),
    selecting("num-errors-0", "num_errors=0", "positive", num_errors=0),
    selecting("num-errors-text", "num_errors='other'", num_errors="other"),
    selecting("expectation", "evaluation_expectation='other'", "MonteCarlo", evaluation_expectation="other"),
    selecting(
        "expectation-of-many-latents",
        "fewer nodes per axis",
        latent_dims=(1, 12),
        evaluation_expectation=ve.expectation.GaussHermite(8),
    ),
    selecting("unknown-option", "'epoch'", "did you mean 'epochs'", epoch=3),
    selecting("unknown-option-far", "'colour'", "learning_rate", colour=3),
    selecting("epochs-0", "epochs=0", epochs=0),
    selecting("patience", "patience given", "plateau", patience=3),
    selecting("missing", "missing='drop'", missing="drop"),
    selecting("learning-rate", "learning_rate=-1", learning_rate=-1.0),
]


def bounding(name: str, *says: str, data: Any = X, **options: Any) -> Case:
    """`log_likelihood` by two draws, unless told otherwise."""
    options = {"num_samples": 2, **options}
    return calling(f"log-likelihood-{name}", lambda: ve.log_likelihood(model(), data, **options), *says)


BOUNDS = [
    calling("log-likelihood-model", lambda: ve.log_likelihood(OTHER, X), "str", "from_functions"),
    calling("log-likelihood-model-none", lambda: ve.log_likelihood(NONE, X), "NoneType", "from_functions"),
    bounding("samples-zero", "num_samples=0", "at least 1", num_samples=0),
    bounding("samples-fraction", "num_samples=2.0", num_samples=2.0),
    bounding("samples-text", "num_samples='other'", num_samples=OTHER),
    bounding("samples-none", "num_samples=None", num_samples=None),
    bounding("samples-bool", "num_samples=True", num_samples=True),
    bounding("seed", "seed=-1", seed=-1),
    bounding("seed-text", "seed='other'", seed=OTHER),
    bounding("exact-text", "exact='other'", "True, False or None", exact=OTHER),
    bounding("exact-number", "exact=1", "True, False or None", exact=1),
    bounding("exact-unknown", "exact=True", "log_likelihood(x)", "exact=None", exact=True),
    bounding("exact-missing", "exact=True", 'missing="ignore"', exact=True, missing="ignore"),
    bounding("data-text", "str", data="abc"),
    bounding("data-shape", "(20, 2)", "(N, 3)", data=X[:, :2]),
    bounding("data-empty", "at least one", data=X[:0]),
    bounding("data-nan", "row 4", "column 2", data=with_nan()),
    bounding("all-missing", "every value is missing", data=X * torch.nan, missing="ignore"),
    bounding("batch-size", "batch_size=0", batch_size=0),
    bounding("mode", "mode='other'", mode=OTHER),
    bounding("engine", "engine='other'", "Processes(4)", engine=OTHER),
    bounding("missing", "missing='drop'", missing="drop"),
    bounding("bind", "bind='other'", bind=OTHER),
    bounding("on-batch", "on_batch='other'", on_batch=OTHER),
    bounding("weights-few", "sample_weight", "19", sample_weight=torch.ones(19)),
    bounding("log-jacobian", "log_jacobian", log_jacobian=float("nan")),
]


def pair(**parts: Any) -> Any:
    """A module with `encode` and `decode`, and whatever else."""
    networks = torch.nn.Linear(3, 2)
    networks.encode = networks.decode = networks.forward  # type: ignore[assignment]
    for name, part in parts.items():
        setattr(networks, name, part)
    return networks


ADAPTERS = [
    calling("pytorch-vae-text", lambda: adapters.from_pytorch_vae(OTHER, variance=1.0), "str", "encode"),
    calling("pytorch-vae-linear", lambda: adapters.from_pytorch_vae(torch.nn.Linear(1, 1)), "Linear", "encode"),
    calling("pytorch-vae-neither", lambda: adapters.from_pytorch_vae(pair()), "neither variance nor kld_weight"),
    calling("pytorch-vae-both", lambda: adapters.from_pytorch_vae(pair(), variance=1, kld_weight=1), "both"),
    calling("pytorch-vae-variance", lambda: adapters.from_pytorch_vae(pair(), variance=OTHER), "variance='other'"),
    calling("pytorch-vae-weight", lambda: adapters.from_pytorch_vae(pair(), kld_weight=OTHER), "kld_weight='other'"),
    calling(
        "pytorch-vae-weight-0", lambda: adapters.from_pytorch_vae(pair(), kld_weight=0), "kld_weight=0", "positive"
    ),
    calling(
        "pytorch-vae-encoder",
        lambda: ve.evaluate(adapters.from_pytorch_vae(pair(), variance=1.0), X),
        "encode of Linear returned one Tensor",
        "no ELBO",
    ),
    calling("sigma-vae-none", lambda: adapters.from_sigma_vae(NONE), "NoneType", "log_sigma"),
    calling("sigma-vae-without-sigma", lambda: adapters.from_sigma_vae(pair()), "log_sigma is None"),
    calling("sigma-vae-kind", lambda: adapters.from_sigma_vae(pair(model=OTHER)), "model='other'", "'sigma_vae'"),
    calling("sigma-vae-mse", lambda: adapters.from_sigma_vae(pair(model="mse_vae")), "'mse_vae'", "variance=..."),
    calling("sigma-vae-variance", lambda: adapters.from_sigma_vae(pair(), variance=-1), "variance=-1", "positive"),
    calling("scvi-text", lambda: adapters.from_scvi(OTHER), "str", "SCVI"),
    calling("scvi-module", lambda: adapters.from_scvi(pair()), "Linear", "SCVI"),
    calling("pyro-model", lambda: adapters.from_pyro(OTHER, abs), "model='other'", "function"),
    calling("pyro-guide", lambda: adapters.from_pyro(abs, NONE), "guide=None", "function"),
    calling("pyro-latent", lambda: adapters.from_pyro(abs, abs, latent=NONE), "latent=None", "site"),
    calling("pyro-observed", lambda: adapters.from_pyro(abs, abs, observed=3), "observed=3", "site"),  # type: ignore[arg-type]
]


def pruning(name: str, latents: Any, *says: str, **options: Any) -> Case:
    """`prune` of a model with two latents."""
    return calling(f"prune-{name}", lambda: ve.prune(model(), latents, **options), *says)


PRUNING = [
    calling("prune-model", lambda: ve.prune(OTHER, [0]), "str", "VAE or LinearVAE"),
    calling("prune-model-none", lambda: ve.prune(NONE, [0]), "NoneType", "VAE or LinearVAE"),
    calling("prune-functions", lambda: ve.prune(_functions(), [0]), "expected a VAE or LinearVAE"),
    calling("prune-calibrated", lambda: ve.prune(ve.calibrate(model(), X), [0]), "Rescaled", "fold"),  # type: ignore[type-var]
    pruning("mask", [True, False], "latents=[True, False]", "from 0 to 1"),
    pruning("mask-numpy", np.array([True, False]), "latents", "from 0 to 1"),
    pruning("mask-torch", torch.tensor([True, False]), "latents", "from 0 to 1"),
    pruning("fractions", [0.0], "latents=[0.0]", "whole numbers"),
    pruning("fractions-numpy", np.array([0.0]), "latents", "whole numbers"),
    pruning("nan", [float("nan")], "latents=[nan]", "whole numbers"),
    pruning("texts", ["0"], "latents=['0']", "whole numbers"),
    pruning("text", "0", "latents='0'", "whole numbers"),
    pruning("nested", [[0]], "latents=[[0]]", "whole numbers"),
    pruning("number", 1, "latents=1", "whole numbers"),
    pruning("number-torch", torch.tensor(1), "latents", "whole numbers"),
    pruning("none", None, "latents=None", "whole numbers"),
    pruning("negative", [-1], "latents=[-1]", "from 0 to 1"),
    pruning("beyond", [2], "latents=[2]", "from 0 to 1"),
    pruning("repeated", [1, 1], "latents=[1, 1]", "different"),
    pruning("all", [0, 1], "all 2 latents", "at least one"),
    pruning("data-text", [0], "str given as data", data="x.npy"),
    pruning("data-shape", [0], "(20, 2)", "(N, 3)", data=X[:, :2]),
    pruning("data-nan", [0], "row 4", "column 2", data=with_nan()),
    pruning("missing", [0], "missing='drop'", missing="drop", data=X),
]


def _functions() -> Any:
    encode = model()
    return ve.from_functions(encode.posterior, encode.likelihood)


LOADS = [
    loading("none", None, "NoneType"),
    loading("number", 5, "()", "(rows, features, ...)"),
    loading("nul", "a\0b.npy", "\\x00"),
    loading("bytes", b"x.npy", "bytes"),
    loading("complex", X + 1j, "complex"),
    loading("frame-text", frame(a=[1.0, 2.0], b=["t", "u"]), "'b'", "leave it out"),
    loading("frame-column", frame(a=[1.0, 2.0]), "'z'", columns="z"),
    loading("frame-nan", frame(a=[1.0, 2.0, None]), "row 2", "'a'", "nan"),
    loading("array-empty", np.zeros((0, 2)), "(0, 2)"),
    loading("held-out-text", X, "held_out", "'other'", held_out="other"),
    loading("held-out-bool", X, "held_out", "True", held_out=True),
    loading("held-out-negative", X, "held_out", "-0.1", held_out=-0.1),
    loading("seed-text", X, "seed='other'", seed="other"),
    loading("seed-negative", X, "seed=-1", seed=-1),
    loading("dtype-text", X, "dtype", "'float32'", "torch.float32", dtype="float32"),
    loading("dtype-int", X, "dtype", "torch.int64", dtype=torch.int64),
    loading("scale", X, "scale=5", "standard", scale=5),
    loading("missing", X, "missing='drop'", missing="drop"),
    loading("image-size-text", "images", "image_size='other'", image_size="other"),
    loading("columns-number", "x.csv", "columns=5", columns=5, make=text("a,b\n1,2\n3,4\n", "x.csv")),
    loading("columns-of-numbers", "x.csv", "columns=[1]", columns=[1], make=text("a,b\n1,2\n3,4\n", "x.csv")),
    loading("exclude-none", "x.csv", "exclude=None", exclude=None, make=text("a,b\n1,2\n3,4\n", "x.csv")),
    loading("key-number", "x.npz", "key=5", key=5, make=lambda: np.savez("x.npz", a=numbers())),
    loading("folder-number", "mnist", "folder=5", folder=5),
    calling("read-idx-none", lambda: ve.data.read_idx(NONE), "path=None"),
    calling("read-idx-number", lambda: ve.data.read_idx(7), "path=7"),  # type: ignore[arg-type]
    calling("read-idx-nul", lambda: ve.data.read_idx("a\0"), "\\x00"),
    calling("split-held-out", lambda: ve.data.split(X, 2.0), "held_out", "2.0"),
    calling("split-text", lambda: ve.data.split(OTHER), "str"),
    calling("batches", lambda: ve.data.Batches(X, OTHER), "batch_size='other'"),
]


def checkpoints(*arguments: Any, **options: Any) -> Any:
    from vaentropy.training import Checkpoints

    return Checkpoints(*arguments, **options)


def foreign_settings() -> Any:
    """Resume under other settings than those that the checkpoint was made under."""
    return ve.fit(model(), X, epochs=2, checkpoints="run", resume=True, progress=False)


def opened(make: Any) -> Any:
    """Open a logger."""
    with make():
        pass


LOGGERS = [
    calling("logger-name", lambda: loggers.Console(name=OTHER[:0]), "name=''", "name of a run"),
    calling("logger-name-number", lambda: loggers.Console(name=3), "name=3", "name of a run"),  # type: ignore[arg-type]
    calling("logger-settings", lambda: loggers.Console(settings=OTHER), "settings='other'", "mapping"),
    calling("logger-every", lambda: loggers.Console(every=1.5), "every=1.5"),  # type: ignore[arg-type]
    calling("logger-row-outside", lambda: loggers.Console()({"epoch": 1, "step": 1}), "not open", "with Console"),
    calling("logger-summary", lambda: loggers.Console().summary(OTHER), "history='other'", "History"),
    calling("logger-folder", lambda: loggers.TensorBoard(NONE), "folder=None", "path"),
    calling(
        "logger-folder-in-a-file",
        lambda: opened(lambda: loggers.TensorBoard("x.csv/a")),
        "x.csv/a",
        "cannot be made",
        make=text("", "x.csv"),
    ),
    calling("logger-wandb-id", lambda: loggers.WandB("logs", run_id=3), "run_id=3"),  # type: ignore[arg-type]
    calling("loggers-number", lambda: loggers.Together(5), "loggers=5", "list of loggers"),  # type: ignore[arg-type]
    calling("loggers-function", lambda: loggers.PerModel([print]), "loggers[0]", "TensorBoard"),  # type: ignore[list-item]
    calling("train-log-text", lambda: ve.runs.train(ve.runs.RunConfig(), log="wandb"), "log='wandb'", "list"),
    calling("train-log-number", lambda: ve.runs.train(ve.runs.RunConfig(), log=[5]), "log 5", "tensorboard"),  # type: ignore[list-item]
    calling("resume-log", lambda: ve.runs.resume("run", log=OTHER), "log='other'", make=run),
    calling("continue-log", lambda: ve.runs.continue_run("run", log=["wand"]), "'wandb'", make=run),
]


def callback(**options: Any) -> Any:
    """A Lightning callback of a bind that is never called, unless there is another one."""
    from vaentropy.integrations.lightning import EntropyCallback

    return EntropyCallback(**{"bind": lambda module, batch: (module, batch), **options})


LIGHTNING = [
    calling("lightning-bind", lambda: callback(bind=OTHER), "bind='other'", "returns (model, x)"),
    calling("lightning-bind-none", lambda: callback(bind=NONE), "bind=None"),
    calling("lightning-expectation", lambda: callback(expectation=8), "expectation=8", "MonteCarlo"),
    calling("lightning-dataloaders-text", lambda: callback(dataloaders="val"), "dataloaders='val'", "in a list"),
    calling("lightning-dataloaders-empty", lambda: callback(dataloaders=[]), "dataloaders=[]", "None for all"),
    calling("lightning-dataloaders-bool", lambda: callback(dataloaders=[True]), "dataloaders=[True]"),
    calling("lightning-prefix", lambda: callback(prefix=NONE), "prefix=None"),
    calling("lightning-missing", lambda: callback(missing=OTHER), "missing='other'"),
    calling("lightning-mode", lambda: callback(mode=NONE), "mode=None", "'eval' or 'train'"),
    calling("lightning-log-jacobian", lambda: callback(log_jacobian=OTHER), "log_jacobian"),
]

RUN_FUNCTIONS = [
    calling("load-none", lambda: ve.load(NONE), "run=None"),
    calling("load-number", lambda: ve.load(5), "run=5"),  # type: ignore[arg-type]
    calling("load-nul", lambda: ve.load("a\0b"), "\\x00"),
    calling("load-missing", lambda: ve.load("nowhere"), "nowhere", "is no run"),
    calling("load-escapes", lambda: ve.load("no\x1b[31m\nwhere"), "no\\x1b[31m\\nwhere", "is no run"),
    calling("load-device", lambda: ve.load("run", device=OTHER), "device='other'", make=run),
    calling("load-device-number", lambda: ve.load("run", device=NONE), "device=", make=run),
    calling("load-model", lambda: ve.load("run", model=OTHER), "model='other'", "VAE", make=run),
    calling(
        "load-other-model",
        lambda: ve.load("run", model=ve.vae1(3, 5, (4,))),
        "model.safetensors",
        "size mismatch",
        make=run,
    ),
    calling("checkpoints-every", lambda: checkpoints("a", every=0), "every=0"),
    calling("checkpoints-keep", lambda: checkpoints("a", keep=OTHER), "keep='other'"),
    calling("checkpoints-none", lambda: checkpoints(NONE), "folder=None"),
    calling("checkpoints-file", lambda: checkpoints("x.csv/a").begin(), "x.csv/a", make=text("", "x.csv")),
    calling("checkpoints-in-use", lambda: checkpoints("run").begin(), "run", "resume=True", make=run),
    calling("resume-other-settings", foreign_settings, "training began with", make=run),
    calling("settings-positional", lambda: ve.runs.RunConfig(NONE), "data", "None", "text"),
    calling("settings-float", lambda: ve.runs.RunConfig(epochs=3.0), "epochs", "3.0"),  # type: ignore[arg-type]
    calling("settings-list", lambda: ve.runs.RunConfig(hidden=[4]), "hidden", "[4]"),  # type: ignore[arg-type]
    calling("settings-from-number", lambda: ve.runs.RunConfig.from_dict(OTHER), "'other'", "names"),
    calling("train-config", lambda: ve.runs.train(OTHER), "config='other'", "RunConfig"),
    calling("select-config", lambda: ve.runs.select(OTHER), "config='other'", "RunConfig"),
    calling("select-run-dims", lambda: ve.runs.select(ve.runs.RunConfig(), OTHER), "latent_dims='other'"),
    calling("train-out", lambda: ve.runs.train(ve.runs.RunConfig(), out=5), "out=5"),  # type: ignore[arg-type]
    calling("encode-out", lambda: ve.runs.encode_run("run", 5), "out=5", make=run),  # type: ignore[arg-type]
    calling("encode-data", lambda: ve.runs.encode_run("run", "z.npy", data=OTHER), "'other'", make=run),
    calling("sample-text", lambda: ve.runs.sample_run("run", "z.npy", OTHER), "num_samples='other'", make=run),
    calling("sample-seed-text", lambda: ve.runs.sample_run("run", "z.npy", 3, seed=OTHER), "seed='other'", make=run),
    calling(
        "evaluate-run-expectation", lambda: ve.runs.evaluate_run("run", expectation=OTHER), "expectation", make=run
    ),
    calling("prune-run-number", lambda: ve.runs.prune_run("run", latents=5), "latents=5", make=run),  # type: ignore[arg-type]
    calling("prune-run-all", lambda: ve.runs.prune_run("run", latents=[0, 1]), "all 2 latents", make=run),
    calling("continue-run-epochs-text", lambda: ve.runs.continue_run("run", epochs="2"), "epochs", "'2'", make=run),
    calling("continue-run-none", lambda: ve.runs.continue_run(NONE), "run=None"),
    calling("bound-run-samples", lambda: ve.runs.log_likelihood_run("run", num_samples=0), "num_samples=0", make=run),
    calling("bound-run-seed", lambda: ve.runs.log_likelihood_run("run", seed=OTHER), "seed='other'", make=run),
    calling("bound-run-missing", lambda: ve.runs.log_likelihood_run("nowhere"), "nowhere", "is no run"),
    calling("bound-run-data", lambda: ve.runs.log_likelihood_run("run", data=OTHER), "'other'", make=run),
    calling("calibrate-run-expectation", lambda: ve.runs.calibrate_run("run", expectation=OTHER), "expectat", make=run),
]

C = torch.ones(len(X), 2)  # a condition of two numbers for each point


def conditional() -> Any:
    torch.manual_seed(0)
    return ve.vae1(3, 2, (4,), condition=2)


CONDITIONS = [
    calling("condition-0", lambda: ve.vae1(3, 2, condition=0), "condition=0", "at least 1"),
    calling("condition-text", lambda: ve.vae1(3, 2, condition=OTHER), "condition='other'"),
    calling("condition-fit-without", lambda: ve.fit(conditional(), X), "without a condition", "ve.given"),
    calling("condition-evaluate-without", lambda: ve.evaluate(conditional(), X), "without a condition", "ve.given"),
    calling("condition-of-none", lambda: ve.evaluate(model(), ve.given(X, C)), "takes none", "condition=k"),
    calling("condition-replicates", lambda: ve.fit_replicates([model()], ve.given(X, C)), "takes none"),
    calling("condition-width", lambda: ve.evaluate(conditional(), ve.given(X, C[:, :1])), "width 1", "expected 2"),
    calling("condition-features", lambda: ve.fit(conditional(), ve.given(X[:, :2], C)), "(20, 2)", "(N, 3)"),
    calling("condition-rows", lambda: ve.given(X, C[:5]), "5 conditions", "20 data points"),
    calling("condition-nan", lambda: ve.given(X, C * torch.nan), "the condition", "row 0, column 0", "nan"),
    calling("condition-no-numbers", lambda: ve.given(X, OTHER), "the condition", "str given", "one_hot"),
    calling("condition-no-data", lambda: ve.given(OTHER, C), "str given as data"),
    calling("condition-sample", lambda: conditional().sample(3), "no condition", "(N, 2)"),
    calling("condition-sample-width", lambda: conditional().sample(3, condition=C[0, :1]), "(1, 1)", "(2,)"),
    calling(
        "condition-encode-huge", lambda: conditional().encode(X, condition=1e300 * C.double()), "the condition", "inf"
    ),
    calling("condition-one-hot-number", lambda: ve.data.one_hot([1], 10), "categories=10", "range(10)"),  # type: ignore[arg-type]
    calling("condition-encode-none", lambda: model().encode(X, condition=C), "takes none"),
    calling("condition-select-linear", lambda: ve.select(ve.given(X, C), model="linear"), "linear", "condition"),
    calling("condition-one-hot", lambda: ve.data.one_hot([0.5]), "whole numbers or texts"),
    calling("condition-one-hot-none", lambda: ve.data.one_hot(NONE), "expected (N,)"),
    calling("condition-one-hot-categories", lambda: ve.data.one_hot([1], OTHER), "categories='other'", "range(10)"),
    calling("condition-columns-number", lambda: ve.data.load(frame(a=[1, 2]), condition=[3]), "condition=[3]", "names"),  # type: ignore[list-item]
    calling("condition-columns-type", lambda: ve.data.load(frame(a=[1, 2]), condition=3), "condition=3", "names"),  # type: ignore[arg-type]
    calling("condition-columns-of-array", lambda: ve.data.load(X, condition="a"), "for a table", "ve.given"),
    calling(
        "condition-column-missing",
        lambda: ve.data.load("x.csv", condition="c"),
        "row 1",
        "'c' is missing",
        make=text("a,b,c\n1,2,x\n3,4,\n", "x.csv"),
    ),
    calling("condition-run-of-none", lambda: ve.runs.sample_run("run", "z.npy", 3, condition=["1"]), "none", make=run),
]

PYTHON = [
    *MODELS,
    *CONDITIONS,
    *FITS,
    *REPLICATES,
    *EVALUATIONS,
    *BOUNDS,
    *ADAPTERS,
    *PRUNING,
    *SELECTIONS,
    *SWEEPS,
    *DIAGNOSES,
    *LOADS,
    *LOGGERS,
    *LIGHTNING,
    *RUN_FUNCTIONS,
]
