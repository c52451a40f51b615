"""Train a model and leave a run folder; go on with one that was interrupted."""

import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import vaentropy
from vaentropy.checks import require_function, require_instance, require_path
from vaentropy.config import CHANGEABLE, RunConfig
from vaentropy.data import Dataset
from vaentropy.errors import DataError, TrainingError, UsageError, nearest, shown
from vaentropy.evaluation import evaluate
from vaentropy.files import write_tensors
from vaentropy.likelihoods import Gaussian
from vaentropy.runs.build import (
    build_model,
    fingerprints,
    load_own,
    moved,
    num_threads,
    torch_device,
    with_absolute_paths,
)
from vaentropy.runs.folder import INITIAL, SCHEMA_VERSION, RunFolder
from vaentropy.runs.logs import logs_of, require_logs
from vaentropy.runs.remarks import remarks_on
from vaentropy.runs.room import drop_replaced, filled, mend, require_room_beside
from vaentropy.runs.use import load, put_weights
from vaentropy.training import Checkpoints, History, Interrupted, fit
from vaentropy.training.history import Row
from vaentropy.vae import VAE
from vaentropy.world import Packet, found

__all__ = ["Run", "continue_run", "resume", "train"]


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: where its files are.
        config: what it was asked for.
        model: the trained VAE, in the space of the scaled data.
        data: what it was trained on, with their scaling.
        history: rows per epoch, and the evaluations after the last one.
        seconds: wall-clock time of training and evaluation, over all interruptions.
        remarks: what a user should know besides, one line each.
    """

    folder: Path
    config: RunConfig
    model: VAE
    data: Dataset
    history: History
    seconds: float
    remarks: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Of the data, so that results say in which space they are."""
        return self.data.description


def train(
    config: RunConfig,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    log: Sequence[str] = (),
    progress: bool | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> Run:
    """Load data, build the model, train it, and leave a run folder.

    In an initialised group of torch.distributed its processes train together, see `fit`; the first one writes. This
    also holds for `resume` and `continue_run`.

    Args:
        config: what to do.
        out: folder of the run, new or empty; by default a new one under runs/.
        overwrite: replace the run that `out` holds; it is there until the new one has begun.
        log: live, to any of "console", "tensorboard", "wandb" and "mlflow": a table on stderr, and files in the folder
            logs/ of the run.
        progress: a bar on stderr; None shows it on a terminal.
        on_epoch: called with each row of the history as it is made.

    Raises:
        VaentropyError: a setting, the data or the folder cannot be used; nothing that existed has been changed.
        TrainingError: training diverged for good; if it had come beyond its first epoch, the folder has checkpoints and
            history up to there.
        Interrupted: by Ctrl-C or SIGTERM, after a checkpoint; `resume` goes on from it.
    """
    require_instance("config", config, RunConfig, "a RunConfig")
    if out is not None:
        require_path("out", out)
    require_logs(log)
    require_function("on_epoch", on_epoch)
    config = with_absolute_paths(config)
    prepared, name = _prepare(config), f"{Path(config.data).stem}-{config.model}"
    with _held(lambda: filled(out, name, overwrite=overwrite)) as folder:
        if found().first:
            # First of all: with it the folder is a run, from which training can be resumed.
            folder.write_config(config)
        return _train(folder, config, prepared, resume=False, log=log, progress=progress, on_epoch=on_epoch)


def resume(
    run: str | Path,
    *,
    data_folder: str | None = None,
    log: Sequence[str] = (),
    progress: bool | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> Run:
    """Go on with an interrupted run from its newest checkpoint, to the same end as if it had not been interrupted.

    A run that was killed before its first checkpoint begins anew, a finished one is evaluated again.

    Args:
        run: its folder.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        log: as for `train`; logs in the folder go on where training does.
        progress: a bar on stderr; None shows it on a terminal.
        on_epoch: called with each new row of the history as it is made.

    Raises:
        VaentropyError: the folder is no run, is in use, or its data have changed.
        TrainingError, Interrupted: as `train`.
    """
    require_logs(log)
    require_function("on_epoch", on_epoch)
    folder, world = RunFolder(run), found()

    def checked() -> Packet:
        """With the weights that it began with, where its data are still the same."""
        begun_with = _with_initial(folder, prepared)
        if folder.file("manifest.json").exists():
            folder.require_same_data(prepared.fingerprints, prepared.data.scaling)
        drop_replaced(folder)
        return Packet({}, begun_with.continued_from)

    with _held(lambda: _reopened(folder)):
        config = RunConfig.from_dict(world.from_first(lambda: Packet({}, folder.config().to_dict())).values)
        prepared = _prepare(config, data_folder)
        prepared = prepared._replace(continued_from=world.from_first(checked).values)
        world.spread(*prepared.model.state_dict().values())
        return _train(folder, config, prepared, resume=True, log=log, progress=progress, on_epoch=on_epoch)


@contextmanager
def _held(hold: Callable[[], AbstractContextManager[RunFolder]]) -> Iterator[RunFolder]:
    """A folder that the first of several processes holds; only that one may write to it."""
    with found().held(hold, str) as path:
        yield RunFolder(path)


@contextmanager
def _reopened(folder: RunFolder) -> Iterator[RunFolder]:
    """A run's folder, to go on with the run."""
    folder.config()
    # Nothing is written through a link that leads out of the folder.
    folder.require_inside()
    with folder.locked():
        mend(folder)
        if folder.file("model.safetensors").exists() and not Checkpoints(folder.path).steps():
            how = f"train it further with: vaentropy continue {shlex.quote(str(folder))}"
            raise UsageError(f"{folder} is finished and has no checkpoints, so that there is nothing to resume; {how}")
        yield folder


# Models whose weights another model can go on from.
CONVERSIONS = (("vae0", "vae1"), ("vae2", "vae1"))


def continue_run(
    run: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_folder: str | None = None,
    log: Sequence[str] = (),
    progress: bool | None = None,
    **settings: Any,
) -> Run:
    """Train the model of a finished run further, as a new run, with analytic variances.

    The new run begins with the weights that the other ended with, on the same data, and keeps its settings but for
    those that are given. Of a vae0 it can make a vae1, whose σ² begins at its optimum for the training data (there is
    no σ² of its own to begin with, and at its optimum the ELBO is higher from the first step on, whether variances are
    then learned or analytic); of a vae2 a vae1, which begins with the same ELBO.

    Args:
        run: folder of the finished run; it is not changed.
        out: folder of the new run; by default a new one under runs/.
        overwrite: replace the run that `out` holds.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        log: as for `train`.
        progress: a bar on stderr; None shows it on a terminal.
        **settings: of training, by their names in `RunConfig`, such as epochs, learning_rate, beta; `variances` are
            "analytic" if not given.

    Raises:
        VaentropyError: the run is not finished or in use, its data have changed, or a setting does not fit its weights.
        TrainingError, Interrupted: as `train`.
    """
    require_logs(log)
    source = RunFolder(run)
    before = source.config()
    _require_changeable(settings, before)
    world = found()
    if world.first:
        require_room_beside(source, out, overwrite=overwrite)
    config = replace(before, **{"variances": "analytic", **settings})
    if data_folder is not None:
        # The new run knows where its data are: it is to be resumed without being told.
        config = replace(config, data_folder=data_folder)
        config = with_absolute_paths(replace(config, data=moved(config.data, data_folder)))
    trained = load(run, device=config.device)
    prepared = _prepare(config)
    source.require_same_data(prepared.fingerprints, prepared.data.scaling)
    weights = _weights_for(prepared.model, trained, config, prepared.data)
    prepared.model.load_state_dict(weights)
    prepared = prepared._replace(continued_from=str(source))
    name = f"{source.path.resolve().name}-continued"
    with _held(lambda: filled(out, name, overwrite=overwrite)) as folder:
        if world.first:
            # Before the settings: with these the folder is a run that can be resumed, from these weights.
            write_tensors(folder.file(INITIAL), weights, {"continued_from": str(source)})
            folder.write_config(config)
        return _train(folder, config, prepared, resume=False, log=log, progress=progress)


def _require_changeable(settings: Mapping[str, Any], before: RunConfig) -> None:
    known = [f.name for f in fields(RunConfig)]
    for name, value in settings.items():
        if name not in known:
            raise UsageError(f"setting {shown(name)} given, which there is not; {nearest(name, known)}".rstrip("; "))
        if name not in CHANGEABLE:
            how = "train anew for another"
            raise UsageError(f"{name}={shown(value)} given, but a run goes on with its own data and networks; {how}")
    model = settings.get("model", before.model)
    if model != before.model and (before.model, model) not in CONVERSIONS:
        fitting = " or ".join([before.model, *(after for other, after in CONVERSIONS if other == before.model)])
        raise UsageError(
            f"model={shown(model)} given to go on with a {before.model}, expected {fitting}: its weights fit no other"
        )


def _weights_for(model: VAE, trained: VAE, config: RunConfig, data: Dataset) -> dict[str, torch.Tensor]:
    """The trained weights as those of the new model: its σ² is at its optimum for the training data where it was fixed
    before, and prior variances are in the networks where the new prior is the standard normal one.
    """
    if isinstance(trained.prior_log_variance, nn.Parameter) and not isinstance(model.prior_log_variance, nn.Parameter):
        trained = trained.fold_prior()
    weights = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    missing = model.state_dict().keys() - weights.keys()
    if missing:
        (name,) = missing  # log σ² of a vae1 made of a vae0
        with num_threads(config, trained):
            missing_values: Any = config.missing
            optimum = evaluate(trained, data.train, missing=missing_values).optimal_variance
        assert optimum is not None
        weights[name] = torch.full_like(
            model.state_dict()[name], math.log(max(optimum, Gaussian().floor)), device="cpu"
        )
    return weights


def _with_initial(folder: RunFolder, prepared: "_Prepared") -> "_Prepared":
    """With the weights that a continued run began with.

    Raises:
        DataError: they are damaged, or are gone and were needed.
    """
    if folder.file(INITIAL).exists():
        weights, about = folder.tensors(INITIAL)
        put_weights(prepared.model, weights, f"{folder}/{INITIAL}")
        return prepared._replace(continued_from=about.get("continued_from"))
    source = folder.manifest().get("continued_from") if folder.file("manifest.json").exists() else None
    if source is not None and not Checkpoints(folder.path).steps():
        how = "put the file of the run back"
        raise DataError(f"{folder} has no {INITIAL}, the weights that its training began with; {how}")
    return prepared._replace(continued_from=source)


class _Prepared(NamedTuple):
    data: Dataset
    fingerprints: Mapping[str, str]
    model: VAE
    continued_from: str | None = None


def _prepare(config: RunConfig, data_folder: str | None = None) -> _Prepared:
    device = torch_device(config.device)
    data = load_own(config, folder=data_folder)
    if config.patience and not len(data.held_out):
        raise UsageError(f"patience={config.patience} given without held-out data, expected some to judge by")
    return _Prepared(data, fingerprints(data), build_model(config, data.data_shape, data.coding).to(device))


def _train(
    folder: RunFolder,
    config: RunConfig,
    prepared: _Prepared,
    *,
    resume: bool,
    log: Sequence[str],
    progress: bool | None,
    on_epoch: Callable[[Row], None] | None = None,
) -> Run:
    start, first = time.perf_counter(), found().first
    data, model = prepared.data, prepared.model
    if first:
        _begin(folder, prepared, resume=resume)
    try:
        with num_threads(config, model), logs_of(folder, config, log if first else (), resume=resume) as live:
            history = fit(
                model,
                data.train,
                held_out=data.held_out if len(data.held_out) else None,
                log_jacobian=data.scaling.log_jacobian,
                checkpoints=Checkpoints(folder.path, every=config.checkpoint_every, keep=config.keep_checkpoints),
                resume=resume,
                progress=progress,
                on_epoch=_both(live, on_epoch),
                **config.settings(),
            )
            live.summary(history)
    except Interrupted as interrupted:
        if first:
            folder.write_json("manifest.json", _manifest(prepared, "interrupted"))
        how = f"; go on with: vaentropy train --resume {shlex.quote(str(folder))}" if folder.has_begun() else ""
        raise Interrupted(interrupted.signal, f"{interrupted}{how}", at_once=interrupted.at_once) from None
    except TrainingError as error:
        if first:
            folder.write_json("manifest.json", _manifest(prepared, f"failed: {error}"))
        raise
    if first:
        _end(folder, prepared, history)
    seconds = max(time.perf_counter() - start, float(history.rows[-1]["seconds"]))
    return Run(folder.path, config, model, data, history, seconds, remarks_on(config, model, data, history))


def _both(first: Callable[[Row], None], second: Callable[[Row], None] | None) -> Callable[[Row], None]:
    def call(row: Row) -> None:
        first(row)
        if second:
            second(row)

    return call


def _begin(folder: RunFolder, prepared: _Prepared, *, resume: bool) -> None:
    # A run that cannot be resumed stays as it is.
    begun = resume and folder.file("manifest.json").exists()
    if not begun or not folder.file("scaling.safetensors").exists():
        folder.write_scaling(prepared.data.scaling)
    if not begun:
        folder.write_json("manifest.json", _manifest(prepared, "running"))


def _end(folder: RunFolder, prepared: _Prepared, history: History) -> None:
    write_tensors(folder.file("model.safetensors"), prepared.model.state_dict())
    folder.write_json("evaluation.json", {name: value for name, value in history.to_dict().items() if name != "rows"})
    # Last of all: what it says is there is there.
    folder.write_json("manifest.json", _manifest(prepared, "finished"))


def _manifest(prepared: _Prepared, status: str) -> dict[str, Any]:
    data, prints, model, continued_from = prepared
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "vaentropy": vaentropy.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(next(model.parameters()).device),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": {
            "description": data.description,
            "data_shape": data.data_shape,
            "columns": data.columns,
            **({} if data.coding is None else {"condition": data.coding.to_dict()}),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
            **prints,
        },
        **({"continued_from": continued_from} if continued_from else {}),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }
