"""`GaussianVAE`: the paper's models, and other `VAE`s, as an estimator of scikit-learn."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vaentropy.checks import require_count, require_instance, require_number
from vaentropy.errors import MissingExtraError, UsageError, shown
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation, MonteCarlo, Sobol
from vaentropy.families import FAMILIES
from vaentropy.results import Evaluation
from vaentropy.rows import as_tensor
from vaentropy.seeding import seeded
from vaentropy.training import History, fit
from vaentropy.vae import VAE

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError:
    raise MissingExtraError("scikit-learn 1.6 or newer", "sklearn") from None

__all__ = ["GaussianVAE"]

DTYPES: Any = (np.float64, np.float32)
# Parameters that go to `fit` as they are.
TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "variances",
    "beta",
    "clip_norm",
    "patience",
    "missing",
)
# With one row σ² would fall to its floor.
FEWEST_ROWS = 2
SEEDS = 2**31 - 1
# Weights and evaluations are drawn with torch's global generators seeded, which threads share: one at a time.
_DRAWING = threading.RLock()


class GaussianVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A VAE as a transformer, as `PCA` is one, and as a density, as `GaussianMixture` is one.

    `transform` gives posterior means, `inverse_transform` decoder means, `score` the mean ELBO, a lower bound on the
    log-likelihood, in nats per data point: cross-validation by it judges on held-out data. `evaluate(X)` gives the
    ledger of entropies, and `vaentropy.diagnose(estimator.model_, X)` says what is wrong with the model.

    Columns in units of their own want a `StandardScaler` before; scores are then in units of the scaled data. float32
    data are trained on in float32, all others in float64. There is no `sample_weight` in `fit`: a row of weight two
    would have to do what two rows do, and training on random batches does not; draw rows by their weights instead.
    Nor is there a `partial_fit`: learning rate and variances go by a course of training whose length is known.

    Args:
        n_components: latents, H.
        model: "vae0", "vae1", "vae2" or "vae3", see there; or a function (n_features, n_components) that makes a new
            `VAE`, such as `functools.partial(vae0, variance=0.1)`.
        hidden: widths of the encoder's layers; the decoder's are these in reverse. Only for a `model` by name.
        epochs, batch_size, learning_rate, schedule, variances, beta, clip_norm: of training, see `fit`.
        patience: stop after so many evaluations of rows that are held out without a better ELBO, about ten evaluations
            being made in all, and end with the best weights; None holds out none.
        validation_fraction: of the rows, drawn at random, that `patience` holds out, in (0, 1); two are left at least.
        missing: "ignore" takes NaN for a missing value, which the likelihood leaves out; "error" refuses it.
        n_draws: points of one Sobol net that scores average over, shared by all rows; a power of 2 is best. On held-out
            digits with two latents 64 were 0.05 nats off, and 256 were within 0.006.
        device: of the model, such as "cuda". Unpickled, it is on the CPU.
        verbose: a bar on stderr while training.
        random_state: of weights, rows held out, batches and noise; an int gives equal results at each call.

    Attributes:
        model_: the trained `VAE`.
        history_: the `History` of training.
        evaluation_: `Evaluation` of the training data, for instance `evaluation_.entropies`.
        n_iter_: epochs trained.
        n_features_in_: D.
        feature_names_in_: names of the columns, where X has names that are texts.

    Source: Damm et al., AISTATS 2023, arXiv:2010.14860.
    """

    # What has to make the model anew after unpickling.
    _recipe: tuple[Any, ...]

    def __init__(
        self,
        n_components=2,
        *,
        model="vae1",
        hidden=(50, 50),
        epochs=100,
        batch_size=200,
        learning_rate=5e-3,
        schedule="one_cycle",
        variances="analytic",
        beta=1.0,
        clip_norm=None,
        patience=None,
        validation_fraction=0.1,
        missing="error",
        n_draws=64,
        device="cpu",
        verbose=False,
        random_state=None,
    ):
        self.n_components = n_components
        self.model = model
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.variances = variances
        self.beta = beta
        self.clip_norm = clip_norm
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.missing: Any = missing  # checked by `fit`
        self.n_draws = n_draws
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    # Training.

    def fit(self, X: Any, y: Any = None) -> "GaussianVAE":
        """Train a new model.

        Args:
            X: (N, D), an array or data frame of numbers.
            y: ignored.

        Raises:
            ValueError: data that scikit-learn refuses; as UsageError or DataError, a parameter or data that `fit`
                refuses.
            TrainingError: the ELBO diverges, after all rollbacks; scale the data, or lower the learning rate.
        """
        fewest = FEWEST_ROWS if self.patience is None else FEWEST_ROWS + 1
        x = self._rows(X, reset=True, ensure_min_samples=fewest)
        self._expectation()  # so that a wrong n_draws does not wait for the first score
        random = check_random_state(self.random_state)
        seed = int(random.randint(SEEDS))
        hidden, n_components = _plain(self.hidden), require_count("n_components", _plain(self.n_components))
        recipe = (self.model, x.shape[1], n_components, hidden, str(x.dtype))
        train, held_out = self._parts(x, random)
        with _DRAWING:
            model = _on(_made(recipe, seed), self.device)
            history = fit(model, train, held_out=held_out, seed=seed, progress=bool(self.verbose), **self._settings())
        assert history.train is not None
        self._recipe = recipe
        self.model_: VAE = model.eval()
        self.history_: History = history
        self.evaluation_: Evaluation = history.train
        self.n_iter_ = len(history)
        return self

    def _settings(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in TRAINING}

    def _parts(self, x: np.ndarray, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows to train on, and rows held out."""
        if self.patience is None:
            return x, None
        fraction = require_number("validation_fraction", _plain(self.validation_fraction))
        if fraction >= 1:
            raise UsageError(f"validation_fraction={fraction:g} given, expected a number between 0 and 1")
        count = min(max(1, round(fraction * len(x))), len(x) - FEWEST_ROWS)
        order = random.permutation(len(x))
        return x[order[count:]], x[order[:count]]

    # Latents and back.

    def transform(self, X: Any) -> Any:
        """Posterior means, (N, n_components), in the dtype of X.

        Args:
            X: (N, D), as in `fit`.
        """
        x = self._known_rows(X)
        return _array(self.model_.encode(as_tensor(x), missing=self.missing), x.dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Means of p(x|z), (N, D), in the dtype of X.

        Args:
            X: latents, (N, n_components).

        Raises:
            ValueError: another number of columns than there are latents, or values that are not finite.
        """
        check_is_fitted(self)
        z = check_array(X, dtype=DTYPES, input_name="X")
        if z.shape[1] != self._n_features_out:
            raise UsageError(
                f"X of shape {z.shape} given, expected latents (N, {self._n_features_out}), as transform gives them"
            )
        return _array(self.model_.decode(as_tensor(z)), z.dtype)

    # The density.

    def score_samples(self, X: Any) -> np.ndarray:
        """ELBO of each row, (N,), float64, nats.

        The nodes of the average over the posterior are the same for all rows and at all calls, so that a row's ELBO
        depends on that row alone.

        Args:
            X: (N, D), as in `fit`.
        """
        evaluation = self._evaluated(X, self._expectation, None, pointwise=True)
        assert evaluation.pointwise is not None
        return evaluation.pointwise["elbo"].numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # type: ignore[override]
        """Mean ELBO, nats per data point: the mean of `score_samples`.

        Args:
            X: (N, D), as in `fit`.
            y: ignored.
            sample_weight: (N,), at least 0; None means 1.
        """
        return self._evaluated(X, self._expectation, sample_weight).elbo

    def evaluate(self, X: Any, *, sample_weight: Any = None, expectation: Expectation = MonteCarlo(16)) -> Evaluation:
        """The ELBO, the three entropies, the gap term by term, and what better variances would bring, with errors.

        Args:
            X: (N, D), as in `fit`.
            sample_weight: (N,), at least 0; None means 1.
            expectation: how to average over the posterior; independent draws, the default, give Monte Carlo errors.

        Returns:
            Evaluation, nats per data point.
        """
        return self._evaluated(X, lambda: expectation, sample_weight)

    def sample(self, n_samples: int = 1, *, noise: bool = True, random_state: Any = None) -> np.ndarray:
        """Draws from the model, (n_samples, D).

        Args:
            n_samples: how many.
            noise: draw x from p(x|z); False gives its mean, as is usual for images.
            random_state: of the draws; None takes the estimator's, so that an int there gives the same at each call.
        """
        check_is_fitted(self)
        random = check_random_state(self.random_state if random_state is None else random_state)
        count = require_count("n_samples", _plain(n_samples))
        with _DRAWING:
            return self.model_.sample(count, noise=noise, seed=int(random.randint(SEEDS))).cpu().numpy()

    def _evaluated(
        self, X: Any, expectation: Callable[[], Expectation], sample_weight: Any, *, pointwise: bool = False
    ) -> Evaluation:
        x = self._known_rows(X)
        weights = None if sample_weight is None else np.asarray(sample_weight)
        with _DRAWING:
            return evaluate(
                self.model_,
                x,
                expectation=expectation(),
                sample_weight=weights,
                missing=self.missing,
                pointwise=pointwise,
            )

    def _expectation(self) -> Expectation:
        return Sobol(require_count("n_draws", _plain(self.n_draws)))

    # What scikit-learn asks for.

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        finite = "allow-nan" if self._takes_nan else True
        checked: Any = validate_data(self, X, dtype=DTYPES, ensure_all_finite=finite, **options)
        return checked

    def _known_rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return self._rows(X, reset=False)

    @property
    def _takes_nan(self) -> bool:
        return isinstance(self.missing, str) and self.missing == "ignore"

    @property
    def _n_features_out(self) -> int:
        return self.model_.latent_shape[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._takes_nan
        tags.transformer_tags.preserves_dtype = [np.dtype(dtype).name for dtype in DTYPES]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        stored: Any = super().__getstate__()
        state = dict(stored)
        model = state.pop("model_", None)
        if model is not None:
            # Arrays on the CPU: a model on a device needs that device to be unpickled, and one with a parametrised
            # layer (vae2) cannot be pickled at all.
            state["_weights"] = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        weights = state.pop("_weights", None)
        super().__setstate__(state)
        if weights is not None:
            with _DRAWING:
                self.model_ = _made(self._recipe, 0).eval()
            self.model_.load_state_dict({name: as_tensor(array) for name, array in weights.items()})


def _made(recipe: tuple[Any, ...], seed: int) -> VAE:
    """A new model, on the CPU.

    Args:
        recipe: model, n_features, n_components, hidden and name of the dtype.
        seed: of the weights.

    Raises:
        UsageError: there is no such one, or the user's function made something else.
    """
    model, n_features, n_components, hidden, dtype = recipe
    with seeded(seed, torch.device("cpu")):
        if isinstance(model, str) and model in FAMILIES:
            return FAMILIES[model](n_features, n_components, hidden).to(getattr(torch, dtype))
        if isinstance(model, torch.nn.Module) or not callable(model):
            expected = f"one of {', '.join(FAMILIES)}, or a function (n_features, n_components) that makes a VAE"
            given = shown(model) if isinstance(model, str) else type(model).__name__
            raise UsageError(f"model={given} given, expected {expected}")
        made: Any = model(n_features, n_components)
    require_instance(f"model({n_features}, {n_components})", made, VAE, "a new VAE")
    if (made.data_shape, made.latent_shape) != ((n_features,), (n_components,)):
        raise UsageError(
            f"model({n_features}, {n_components}) made a VAE of data {made.data_shape} and latents "
            f"{made.latent_shape}, expected ({n_features},) and ({n_components},); use both arguments"
        )
    return made.to(getattr(torch, dtype))


def _on(model: VAE, device: Any) -> VAE:
    try:
        return model.to(torch.device(device))
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"device={shown(device)} given, expected one that torch has here ({reason})") from error


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, as grids of parameters hold them, as Python's own."""
    if isinstance(value, list | tuple):
        return type(value)(_plain(each) for each in value)
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _array(x: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    return x.cpu().numpy().astype(dtype, copy=False)
