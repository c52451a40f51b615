"""What a finished run is good for: load, evaluate, encode, reconstruct, sample, tell about it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_instance, require_seed
from vaentropy.conditions import bound_to
from vaentropy.config import RunConfig
from vaentropy.data import Source
from vaentropy.data.conditioned import given
from vaentropy.data.formats.reading import one_line
from vaentropy.data.scaling import Scaling
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation
from vaentropy.importance import LogLikelihood, log_likelihood
from vaentropy.model import LatentVariableModel
from vaentropy.modes import in_mode
from vaentropy.results import Evaluation
from vaentropy.rows import affordable, fill_missing
from vaentropy.runs.build import (
    all_rows,
    build_model,
    fingerprints,
    load_other,
    load_own,
    num_threads,
    torch_device,
)
from vaentropy.runs.folder import RunFolder
from vaentropy.runs.output import Output
from vaentropy.training import Checkpoints
from vaentropy.training.settings import Settings
from vaentropy.vae import VAE

__all__ = [
    "describe_run",
    "encode_run",
    "evaluate_run",
    "load",
    "log_likelihood_run",
    "put_weights",
    "reconstruct_run",
    "require_data_shape",
    "sample_run",
]

Result = TypeVar("Result")

BATCH_SIZE = 1024
# What a manifest calls the run that another was made from.
ORIGINS = ("calibrated_from", "pruned_from", "continued_from")


def load(run: str | Path, *, device: str | torch.device = "cpu", model: VAE | None = None, best: bool = False) -> VAE:
    """The trained model of a run, in eval mode; where the run scaled its data, in the space of the scaled data.

    Args:
        run: its folder.
        device: where to put it; "auto" takes a GPU where there is one.
        model: your own VAE to load the weights into; by default the run's settings say what to build.
        best: take the weights with the best held-out ELBO seen in training, from the checkpoints, and not those that
            training ended with; the run need not be finished.

    Raises:
        DataError: the folder is no finished run, has no best checkpoint, or its weights do not fit the model.
    """
    folder = RunFolder(run)
    if model is not None:
        require_instance("model", model, VAE, "a VAE")
    else:
        model = build_model(folder.config(), folder.data_shape(), folder.coding())
    if best:
        path = Checkpoints(folder.path).best_path()
        if path is None:
            raise DataError(f"{folder} has no checkpoint with a best held-out ELBO; load it without best=True")
        tensors, _ = folder.tensors(name := f"checkpoints/{path.name}")
        prefix = "model."
        weights = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    else:
        weights, _ = folder.tensors(name := "model.safetensors")
    put_weights(model, weights, f"{folder}/{name}")
    return model.to(torch_device(str(device))).eval()


def put_weights(model: VAE, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights from a file of a run into a model, in place.

    Raises:
        DataError: they are of another model, or not finite; names the file by `where`.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        how = "put the file of the run back"
        raise DataError(f"{where} cannot be loaded: {one_line(error)}; {how}") from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        how = "put the file of the run back, or train anew"
        raise DataError(f"{where} holds numbers that are not finite, expected weights; {how}")


def evaluate_run(
    run: str | Path,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    expectation: Expectation | None = None,
    seed: int = 0,
    device: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate the model of a run on the data it was trained and held out on, or on other data.

    Args:
        run: its folder.
        data: a data set, file or folder instead of the run's own, read and scaled in the same way; all of it is
            evaluated as one part, named "data".
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior; None does it as the run's training did, which gives its numbers.
        seed: of the draws where `expectation` is None.
        device: as in `RunConfig`.
        on_batch: called with the number of rows after each batch.

    Returns:
        Evaluations by part: "train" and, where there is any, "held_out"; or "data".

    Raises:
        VaentropyError: the run or the data cannot be used.
    """
    if expectation is not None:
        require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    require_seed(seed)
    settings = Settings(**RunFolder(run).config().settings())

    def of_part(model: VAE, x: Tensor | Source, options: dict[str, Any]) -> Evaluation:
        how = expectation or settings.evaluation_of(len(x)).with_seed(seed)
        return evaluate(model, x, expectation=how, on_batch=on_batch, **options)

    return _each_part(run, of_part, data, data_folder, device)


def log_likelihood_run(
    run: str | Path,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    data: str | None = None,
    data_folder: str | None = None,
    device: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, LogLikelihood]:
    """Bound log p(x) under the model of a run by importance sampling (`log_likelihood`), on the data of `evaluate_run`.

    Args:
        run: its folder.
        num_samples: K, draws of z for each data point; each is a pass through the decoder.
        seed: of the draws.
        data: as for `evaluate_run`.
        data_folder: as for `evaluate_run`.
        device: as in `RunConfig`.
        on_batch: called with the number of rows after each batch.

    Returns:
        Bounds by part, as for `evaluate_run`.

    Raises:
        VaentropyError: the run or the data cannot be used, or the number is below 1.
    """
    require_count("num_samples", num_samples)
    require_seed(seed)

    def of_part(model: VAE, x: Tensor | Source, options: dict[str, Any]) -> LogLikelihood:
        return log_likelihood(model, x, num_samples=num_samples, seed=seed, on_batch=on_batch, **options)

    return _each_part(run, of_part, data, data_folder, device)


def _each_part(
    run: str | Path,
    of_part: Callable[[VAE, Tensor | Source, dict[str, Any]], Result],
    data: str | None,
    data_folder: str | None,
    device: str,
) -> dict[str, Result]:
    """What `of_part(model, x, options)` says of each part of the data, as `evaluate_run` names them."""
    folder = RunFolder(run)
    config, model, scaling = folder.config(), load(run, device=device), folder.scaling()
    if data is None:
        own = load_own(config, folder=data_folder)
        folder.require_same_data(fingerprints(own), own.scaling)
        parts = {"train": own.train, "held_out": own.held_out}
    else:
        other = load_other(config, data, scaling, folder.columns(), folder.coding(), folder=data_folder)
        parts = {"data": other.train}
    options: dict[str, Any] = {"missing": config.missing, "log_jacobian": scaling.log_jacobian}
    for x in parts.values():
        require_data_shape(model, x)
    with num_threads(config, model):
        return {name: of_part(model, x, options) for name, x in parts.items() if len(x)}


def encode_run(
    run: str | Path,
    out: str | Path | None,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    condition: Sequence[str] | None = None,
    variance: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Write posterior means of all rows of a data set, in their order.

    Args:
        run: its folder.
        out: a .npy, .csv or .parquet file of latent_dim columns; None writes CSV to stdout.
        data: a data set, file or folder; by default the run's own, all rows as they are in its file, followed by those
            of the held-out set that it comes with, if any.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        condition: one value for each column of the run's condition, as texts, that all rows are given in place of those
            in the data; None takes those.
        variance: write the posterior variances as well, in as many columns more.
        overwrite: replace the file if it exists.
        device: as in `RunConfig`.
        on_batch: called with the number of rows after each batch.

    Returns:
        Rows written.

    Raises:
        VaentropyError: the run, the data or the file cannot be used.
    """
    config = RunFolder(run).config()
    names = [f"mean_{h}" for h in range(config.latent_dim)]
    names += [f"variance_{h}" for h in range(config.latent_dim)] if variance else []

    output = Output(out, (len(names),), names, overwrite=overwrite)
    opened = _open(run, data, data_folder, device, condition)

    def rows(model: LatentVariableModel, batch: Tensor) -> Tensor:
        q = model.posterior(batch)
        return torch.cat([q.mean, q.variance], -1) if variance else q.mean

    return _write(opened, rows, output, on_batch)


def reconstruct_run(
    run: str | Path,
    out: str | Path | None,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    condition: Sequence[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Write reconstructions of all rows of a data set, in their order and in the units of the data as stored.

    Arguments, result and errors are those of `encode_run`; rows have the shape of the data (flattened in tables).
    """
    folder = RunFolder(run)
    output = Output(out, folder.data_shape(), folder.columns(), overwrite=overwrite)
    opened = _open(run, data, data_folder, device, condition)

    def rows(model: LatentVariableModel, batch: Tensor) -> Tensor:
        z = model.posterior(batch).mean
        return _as_stored(model.likelihood(z).mean, opened.scaling)

    return _write(opened, rows, output, on_batch)


def sample_run(
    run: str | Path,
    out: str | Path | None,
    num_samples: int,
    *,
    condition: Sequence[str] | None = None,
    noise: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "auto",
) -> int:
    """Write draws from the model, in the units of the data as stored.

    Args:
        run: its folder.
        out: as for `encode_run`.
        num_samples: how many.
        condition: one value for each column of the run's condition, as texts; None for a model that is given none.
        noise: draw x from p(x|z); by default its mean is written.
        seed: of the draws.
        overwrite: replace the file if it exists.
        device: as in `RunConfig`.

    Returns:
        Rows written.

    Raises:
        VaentropyError: the run or the file cannot be used, or the number is below 1.
    """
    require_count("num_samples", num_samples)
    require_seed(seed)
    folder = RunFolder(run)
    model, scaling = load(run, device=device), folder.scaling()
    if condition is None and (coding := folder.coding()) is not None:
        expected = f"a value for each of {', '.join(coding.names)}"
        raise UsageError(f"no condition given to sample {folder}, expected {expected}; pass --condition")
    c = None if condition is None else folder.condition(condition)
    output = Output(out, model.data_shape, folder.columns(), overwrite=overwrite)
    with output.opened(num_samples) as write:
        write(_as_stored(model.sample(num_samples, condition=c, noise=noise, seed=seed), scaling))
    return num_samples


def describe_run(run: str | Path) -> dict[str, Any]:
    """What a folder holds: settings, versions, data, how far training has come, the last row of its history.

    Raises:
        DataError: the folder is no run, or a file in it is damaged.
    """
    folder = RunFolder(run)
    config = folder.config()
    manifest = folder.manifest() if folder.file("manifest.json").exists() else {"status": "not started"}
    rows = folder.history()
    status = manifest.get("status", "finished")
    if status in ("running", "interrupted"):
        status = "running" if folder.is_locked() else "interrupted"
    return {
        "run": str(folder),
        "status": status,
        "epochs": f"{len(rows)} of {config.epochs}",
        "checkpoints": Checkpoints(folder.path).steps(),
        "made_from": {name: manifest[name] for name in ORIGINS if manifest.get(name)},
        "last": rows[-1] if rows else None,
        "config": config.to_dict(),
        "manifest": manifest,
    }


class _Opened(NamedTuple):
    config: RunConfig
    model: VAE
    parts: list[Tensor | Source]
    scaling: Scaling


def _open(
    run: str | Path, data: str | None, data_folder: str | None, device: str, condition: Sequence[str] | None
) -> _Opened:
    folder = RunFolder(run)
    config, model, scaling = folder.config(), load(run, device=device), folder.scaling()
    c = None if condition is None else folder.condition(condition)
    coding = folder.coding() if c is None else None
    parts = all_rows(config, data, scaling, folder.columns(), coding, folder=data_folder)
    for x in parts:
        require_data_shape(model, x)
    if c is not None:
        parts = [given(x, c.expand(len(x), -1)) for x in parts]
    return _Opened(config, model, parts, scaling)


def _as_stored(y: Tensor, scaling: Scaling) -> Tensor:
    x = scaling.undo(y.cpu())
    # The uniform noise that whole numbers got has mean ½.
    return x - 0.5 if scaling.dequantised else x


def require_data_shape(model: VAE, x: Tensor | Source) -> None:
    """Refuse data of another shape than the model takes.

    Raises:
        DataError: they are.
    """
    given = tuple(x.shape[1:]) if isinstance(x, Tensor) else x.features_shape
    if given != model.data_shape:
        raise DataError(f"data points of shape {given} given, expected {model.data_shape} as in training")


def _batches(parts: list[Tensor | Source]) -> Iterator[Tensor]:
    for x in parts:
        for shard in [x] if isinstance(x, Tensor) else x:
            yield from shard.split(affordable(BATCH_SIZE, shard.shape[1:]))


@torch.no_grad()
def _write(
    opened: _Opened,
    rows: Callable[[LatentVariableModel, Tensor], Tensor],
    output: Output,
    on_batch: Callable[[int], None] | None,
) -> int:
    config, model, parts, _ = opened
    weight, num_rows = model.latent_mean.weight, sum(len(x) for x in parts)
    with num_threads(config, model), output.opened(num_rows) as write, in_mode(model, "eval"):
        for batch in _batches(parts):
            filled, _ = fill_missing(batch)
            bound, x, _ = bound_to(model, filled.to(weight.device, weight.dtype))
            write(rows(bound, x))
            if on_batch:
                on_batch(len(batch))
    return num_rows
