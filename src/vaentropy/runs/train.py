"""Train a model and leave a run folder; go on with one that was interrupted."""

import platform
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vaentropy
from vaentropy.checks import require_instance, require_path
from vaentropy.config import RunConfig
from vaentropy.data import Dataset
from vaentropy.errors import DataError, TrainingError
from vaentropy.files import write_tensors
from vaentropy.runs.build import build_model, fingerprint, load_own, num_threads, torch_device
from vaentropy.runs.folder import SCHEMA_VERSION, RunFolder
from vaentropy.training import Checkpoints, History, Interrupted, fit
from vaentropy.training.floor import explain_floor
from vaentropy.vae import VAE

__all__ = ["Run", "resume", "train"]

# Of the scale: sums in another order differ by rounding.
SCALING_TOLERANCE = 1e-6


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
    config: RunConfig, *, out: str | Path | None = None, overwrite: bool = False, progress: bool | None = None
) -> Run:
    """Load data, build the model, train it, and leave a run folder.

    Args:
        config: what to do.
        out: folder of the run, new or empty; by default a new one under runs/.
        overwrite: replace the run that `out` holds.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        VaentropyError: a setting, the data or the folder cannot be used; nothing that existed has been changed.
        TrainingError: training diverged for good; the folder has checkpoints and history up to there.
        Interrupted: by Ctrl-C or SIGTERM, after a checkpoint; `resume` goes on from it.
    """
    require_instance("config", config, RunConfig, "a RunConfig")
    if out is not None:
        require_path("out", out)
    data, model = _prepare(config)
    folder = RunFolder.new(out, f"{Path(config.data).stem}-{config.model}", overwrite=overwrite)
    with folder.locked():
        if overwrite:
            folder.clear()
        try:
            # First of all: with it the folder is a run, from which training can be resumed.
            folder.write_config(config)
            return _train(folder, config, data, model, resume=False, progress=progress)
        except BaseException:
            folder.remove_if_unused()
            raise


def resume(run: str | Path, *, progress: bool | None = None) -> Run:
    """Go on with an interrupted run from its newest checkpoint, to the same end as if it had not been interrupted.

    A run that was killed before its first checkpoint begins anew, a finished one is evaluated again.

    Args:
        run: its folder.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        VaentropyError: the folder is no run, is in use, or its data have changed.
        TrainingError, Interrupted: as `train`.
    """
    folder = RunFolder(run)
    config = folder.config()
    # Nothing is written through a link that leads out of the folder.
    folder.require_inside()
    with folder.locked():
        data, model = _prepare(config)
        if folder.file("manifest.json").exists():
            require_unchanged(folder, data)
        return _train(folder, config, data, model, resume=True, progress=progress)


def require_unchanged(folder: RunFolder, data: Dataset) -> None:
    """Refuse data that are not those a run was trained on.

    Raises:
        DataError: their fingerprint is another one.
    """
    scaling, now = folder.scaling(), data.scaling
    # The values that the model sees do not tell of data that were shifted, and then scaled to the same mean.
    same = scaling.shift.shape == now.shift.shape and all(
        bool(((a - b).abs() <= SCALING_TOLERANCE * scaling.scale).all())
        for a, b in ((scaling.shift, now.shift), (scaling.scale, now.scale))
    )
    if not same or folder.manifest()["data"].get("sha256_train") != fingerprint(data.train):
        raise DataError(
            f"{data.name} has changed since {folder} was trained on it; put the data back, or name data to evaluate "
            "with --data"
        )


def _prepare(config: RunConfig) -> tuple[Dataset, VAE]:
    data, device = load_own(config), torch_device(config.device)
    return data, build_model(config, data.data_shape).to(device)


def _train(
    folder: RunFolder, config: RunConfig, data: Dataset, model: VAE, *, resume: bool, progress: bool | None
) -> Run:
    start = time.perf_counter()
    # A run that cannot be resumed stays as it is.
    begun = resume and folder.file("manifest.json").exists()
    if not begun or not folder.file("scaling.safetensors").exists():
        folder.write_scaling(data.scaling)
    if not begun:
        folder.write_json("manifest.json", _manifest(model, data, "running"))
    try:
        with num_threads(config, model):
            history = fit(
                model,
                data.train,
                held_out=data.held_out if len(data.held_out) else None,
                log_jacobian=data.scaling.log_jacobian,
                checkpoints=Checkpoints(folder.path, every=config.checkpoint_every, keep=config.keep_checkpoints),
                resume=resume,
                progress=progress,
                **config.settings(),
            )
    except Interrupted as interrupted:
        folder.write_json("manifest.json", _manifest(model, data, "interrupted"))
        how = f"{interrupted}; go on with: vaentropy train --resume {folder}"
        raise Interrupted(interrupted.signal, how, at_once=interrupted.at_once) from None
    except TrainingError as error:
        folder.write_json("manifest.json", _manifest(model, data, f"failed: {error}"))
        raise
    return _finish(folder, config, data, model, history, time.perf_counter() - start)


def _finish(folder: RunFolder, config: RunConfig, data: Dataset, model: VAE, history: History, seconds: float) -> Run:
    evaluations = {name: value for name, value in history.to_dict().items() if name != "rows"}
    folder.write_json("evaluation.json", evaluations)
    folder.write_json("manifest.json", _manifest(model, data, "finished"))
    write_tensors(folder.file("model.safetensors"), model.state_dict())
    last = history.rows[-1]
    some = data.train[:512] if isinstance(data.train, torch.Tensor) else next(iter(data.train))[:512]
    floor = explain_floor(model, float(last.get("at_floor", 0.0)), some)
    remarks = [remark for remark in (_stopped(history), floor) if remark]
    return Run(folder.path, config, model, data, history, max(seconds, float(last["seconds"])), tuple(remarks))


def _stopped(history: History) -> str | None:
    if history.stopped is None:
        return None
    restored = history.rows[-1].get("restored_epoch")
    end = "" if restored is None else f"; the weights are those of epoch {int(restored)}, the best"
    return f"stopped after epoch {int(history.rows[-1]['epoch'])}: {history.stopped}{end}"


def _manifest(model: VAE, data: Dataset, status: str) -> dict[str, Any]:
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
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
            "sha256_train": fingerprint(data.train),
        },
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
    }
