"""Train a model and leave a run folder; load and evaluate what one holds."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import vaentropy
from vaentropy._typing import Tensor
from vaentropy.data import Dataset
from vaentropy.data import load as load_data
from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.results import Evaluation
from vaentropy.runs.config import DTYPES, RunConfig
from vaentropy.runs.files import new_folder, read_text, read_yaml, to_json, unfinished, write_text, write_yaml
from vaentropy.training import History, fit
from vaentropy.vae import VAE

__all__ = ["Run", "evaluate_run", "load", "read_config", "train"]

SCHEMA_VERSION = 1
# Points per step times parameters. Steps below it are no faster on two threads than on one (measured on two cores: 1.6
# against 2.5 ms at 3 million, 5.5 against 3.8 ms at 17 million), and a hundred times slower where another process
# holds one of the cores.
WORK_WORTH_SHARING = 10_000_000


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: where its files are.
        config: what it was asked for.
        model: the trained VAE.
        history: rows per epoch, and the evaluations after the last one.
        description: of the data, so that results say in which space they are.
        seconds: wall-clock time of training and evaluation.
    """

    folder: Path
    config: RunConfig
    model: VAE
    history: History
    description: str
    seconds: float


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device={name!r} given: {str(error).splitlines()[0]}") from error
    return device


@contextmanager
def _threads(config: RunConfig, model: VAE) -> Iterator[None]:
    before = torch.get_num_threads()
    work = config.batch_size * sum(parameter.numel() for parameter in model.parameters())
    torch.set_num_threads(config.threads or (1 if work < WORK_WORTH_SHARING else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_memory(part: Tensor | Source) -> Tensor:
    assert isinstance(part, Tensor)  # data are loaded with stream=False
    return part


def _fingerprint(x: Tensor) -> str:
    """SHA-256 of shape, dtype and values."""
    digest = hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode())
    digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()


def _fit(model: VAE, data: Dataset, config: RunConfig, progress: bool | None) -> History:
    return fit(
        model,
        _in_memory(data.train),
        held_out=_in_memory(data.held_out),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,  # type: ignore[arg-type]  # RunConfig has checked it
        variances=config.variances,  # type: ignore[arg-type]
        clip_norm=config.clip_norm,
        beta=config.beta,
        expectation=MonteCarlo(config.num_samples),
        evaluation_expectation=MonteCarlo(config.evaluation_samples),
        seed=config.seed,
        progress=progress,
    )


def _versions() -> dict[str, int | str]:
    return {
        "schema_version": SCHEMA_VERSION,
        "vaentropy": vaentropy.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _description(data: Dataset) -> dict[str, Any]:
    return {
        "description": data.description,
        "data_shape": data.data_shape,
        "num_train": len(data.train),
        "num_held_out": len(data.held_out),
        "sha256_train": _fingerprint(_in_memory(data.train)),
    }


def train(config: RunConfig, *, out: str | Path | None = None, progress: bool | None = None) -> Run:
    """Load data, build the model, train it, and leave a run folder.

    Args:
        config: what to do.
        out: folder of the run, new or empty; by default a new one under runs/.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        VaentropyError: a setting, the data or the folder cannot be used; nothing that existed has been changed.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    data, device = config.load_data(), _device(config.device)
    model = config.build(data.data_shape).to(device)
    folder = new_folder(out, f"{Path(config.data).stem}-{config.model}")
    write_yaml(folder / "config.yaml", {**asdict(config), "hidden": list(config.hidden)})
    try:
        with _threads(config, model):
            threads = torch.get_num_threads()
            history = _fit(model, data, config, progress)
    except BaseException:
        # Without a model the folder is of no use, and it would be in the way of the next try.
        with suppress(OSError):
            (folder / "config.yaml").unlink()
            folder.rmdir()
        raise
    seconds = time.perf_counter() - start
    evaluations = {name: value for name, value in history.to_dict().items() if name != "rows"}
    manifest = {
        **_versions(),
        "device": str(device),
        "threads": threads,
        "data": _description(data),
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "command": sys.argv,
    }
    write_text(folder / "history.jsonl", "".join(to_json(row) + "\n" for row in history.rows))
    write_text(folder / "evaluation.json", to_json(evaluations, indent=1) + "\n")
    write_text(folder / "manifest.json", to_json(manifest, indent=1) + "\n")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.partial")
    (folder / "model.safetensors.partial").replace(folder / "model.safetensors")
    return Run(folder, config, model, history, data.description, seconds)


def read_config(run: str | Path) -> RunConfig:
    """The settings of a run.

    Raises:
        DataError: the folder is no run, or its config.yaml cannot be read.
        UsageError: config.yaml holds an unknown key or a wrong value.
    """
    return RunConfig.from_dict(read_yaml(Path(run), "config.yaml"))


def _data_shape(folder: Path) -> tuple[int, ...]:
    manifest = read_text(folder, "manifest.json")
    try:
        shape = json.loads(manifest)["data"]["data_shape"]
        return tuple(int(size) for size in shape)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'manifest.json'} is not the manifest of a run: no data_shape in it") from error


def load(run: str | Path, *, device: str | torch.device = "cpu", model: VAE | None = None) -> VAE:
    """The trained model of a run, in eval mode.

    Args:
        run: its folder.
        device: where to put it; "auto" takes a GPU where there is one.
        model: your own VAE to load the weights into; by default the run's settings say what to build.

    Raises:
        DataError: the folder is no finished run, or its weights do not fit the model.
    """
    folder = Path(run)
    if model is None:
        model = read_config(folder).build(_data_shape(folder))
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise unfinished(folder, path.name) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    return model.to(_device(str(device))).eval()


def evaluate_run(
    run: str | Path,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    expectation: Expectation = MonteCarlo(16),
    device: str = "auto",
) -> dict[str, Evaluation]:
    """Evaluate the model of a run on the data it was trained and held out on, or on other data.

    Args:
        run: its folder.
        data: a data set or .npy file instead of the run's own; all of it is evaluated as one part, named "data".
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior.
        device: as in `RunConfig`.

    Returns:
        Evaluations by part: "train" and, where there is any, "held_out"; or "data".

    Raises:
        VaentropyError: the run or the data cannot be used.
    """
    config = read_config(run)
    model = load(run, device=device)
    folder = data_folder or config.data_folder
    dtype = DTYPES[config.dtype]
    if data is None:
        split = load_data(
            config.data, folder=folder, held_out=config.held_out, seed=config.seed, dtype=dtype, stream=False
        )
        stored = json.loads(read_text(Path(run), "manifest.json"))["data"].get("sha256_train")
        if stored != _fingerprint(_in_memory(split.train)):
            raise DataError(f"{config.data} has changed since the run was trained on it; name data with --data instead")
        loaded = {"train": split.train, "held_out": split.held_out}
    else:
        other = load_data(data, folder=folder, held_out=0.0, seed=config.seed, dtype=dtype, stream=False)
        loaded = {"data": other.train}
    parts = {name: _in_memory(part) for name, part in loaded.items()}
    for x in parts.values():
        if tuple(x.shape[1:]) != model.data_shape:
            given = tuple(x.shape[1:])
            raise DataError(f"data points of shape {given} given, expected {model.data_shape} as in training")
    return {name: evaluate(model, x, expectation=expectation) for name, x in parts.items() if len(x)}
