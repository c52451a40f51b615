"""Training runs and the folders they leave: `train`, `load`, `evaluate_run`.

RUN/config.yaml          everything needed to repeat it, seeds included
RUN/manifest.json        versions, device, data fingerprint, times, command line
RUN/history.jsonl        one row per epoch
RUN/evaluation.json      the evaluations after the last epoch
RUN/model.safetensors    weights only
"""

import difflib
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
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
from vaentropy.errors import DataError, MissingExtraError, UsageError
from vaentropy.evaluation import Evaluation, evaluate
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.training import History, fit
from vaentropy.vae import VAE, vae0, vae1, vae2, vae3

__all__ = ["Run", "RunConfig", "evaluate_run", "load", "read_config", "to_json", "train"]

SCHEMA_VERSION = 1
RUNS = Path("runs")
# Nothing from a file decides which code runs: a name in a file chooses from these.
FAMILIES: Mapping[str, Callable[[tuple[int, ...], int, tuple[int, ...]], VAE]] = {
    "vae0": vae0,
    "vae1": vae1,
    "vae2": vae2,
    "vae3": vae3,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run.

    Attributes:
        data: name of a data set (`vaentropy.data.names()`) or path of a .npy file.
        data_folder: where the files of a named data set are.
        held_out: fraction held out; None takes the data set's own.
        model: vae0, vae1, vae2 or vae3.
        latent_dim: number of latents.
        hidden: widths of the encoder's layers; the decoder's are these in reverse.
        epochs: as for `fit`, like all that follows down to `beta`.
        batch_size: points per step.
        learning_rate: of Adam.
        schedule: "one_cycle" or "constant".
        variances: "analytic" or "learned".
        clip_norm: largest norm of the gradient, or None.
        beta: constant weight of the KL term.
        num_samples: Monte Carlo samples per point in a training step.
        evaluation_samples: Monte Carlo samples per point in evaluations.
        seed: of the split, initial weights, batch order and noise.
        device: "cpu", "cuda", …; "auto" takes a GPU where there is one.
        dtype: "float32" or "float64".
    """

    data: str = "digits"
    data_folder: str | None = None
    held_out: float | None = None
    model: str = "vae1"
    latent_dim: int = 2
    hidden: tuple[int, ...] = (50, 50)
    epochs: int = 500
    batch_size: int = 200
    learning_rate: float = 5e-3
    schedule: str = "one_cycle"
    variances: str = "analytic"
    clip_norm: float | None = None
    beta: float = 1.0
    num_samples: int = 1
    evaluation_samples: int = 16
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _choice("model", self.model, FAMILIES)
        _choice("dtype", self.dtype, DTYPES)
        MonteCarlo(self.num_samples)
        MonteCarlo(self.evaluation_samples)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `dataclasses.asdict`.

        Raises:
            UsageError: an unknown key, or a value of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"unknown setting {name!r}{_nearest(str(name), known)}")
            if not _fits(value, known[name].default, optional=known[name].default is None):
                kind = (
                    type(known[name].default).__name__ if known[name].default is not None else "number, text or nothing"
                )
                raise UsageError(f"setting {name}: {value!r} given, expected {kind}")
        return cls(**values)

    def build(self, data_shape: tuple[int, ...]) -> VAE:
        """The untrained model, its initial weights drawn from the seed; on the CPU, in the run's dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return FAMILIES[self.model](data_shape, self.latent_dim, self.hidden).to(DTYPES[self.dtype])

    def load_data(self) -> Dataset:
        """The data set, split by the seed."""
        folder, dtype = self.data_folder, DTYPES[self.dtype]
        return load_data(self.data, folder=folder, held_out=self.held_out, seed=self.seed, dtype=dtype)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _choice(what: str, value: str, allowed: Mapping[str, Any]) -> None:
    if value not in allowed:
        raise UsageError(f"{what}={value!r} given, expected one of {', '.join(allowed)}{_hint(value, allowed)}")


def _hint(value: str, allowed: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fits(value: Any, default: Any, *, optional: bool) -> bool:
    if optional:
        return value is None or isinstance(value, str | float | int)
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and all(isinstance(v, int) for v in value)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) if isinstance(default, float) else isinstance(value, type(default))


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


def _new_folder(out: str | Path | None, config: RunConfig) -> Path:
    """An empty folder of this run's own; nothing that exists is written to."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not an empty folder; name another one with --out")
        _make(folder, exist_ok=True)
        return folder
    stem = f"{Path(config.data).stem}-{config.model}"
    number = 1
    while True:
        folder = RUNS / (stem if number == 1 else f"{stem}-{number}")
        try:
            _make(folder, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return folder


def _make(folder: Path, *, exist_ok: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}; name another folder with --out") from error


def _write(path: Path, content: str) -> None:
    """Write aside, flush, rename: a reader sees the whole file or none."""
    aside = path.with_name(path.name + ".partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of plain values; numbers that are not finite, which JSON does not have, become null."""

    def finite(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, Mapping):
            return {key: finite(item) for key, item in v.items()}
        return [finite(item) for item in v] if isinstance(v, list | tuple) else v

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "cli") from None
    return yaml


def _fingerprint(x: Tensor) -> str:
    """SHA-256 of shape, dtype and values."""
    digest = hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode())
    digest.update(np.ascontiguousarray(x.cpu().numpy()).data)
    return digest.hexdigest()


def train(config: RunConfig, *, out: str | Path | None = None, progress: bool | None = None) -> Run:
    """Load data, build the model, train it, and leave a run folder.

    Args:
        config: what to do.
        out: folder of the run, new or empty; by default a new one under runs/.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        VaentropyError: a setting, the data or the folder cannot be used; nothing that existed has been changed.
    """
    yaml = _yaml()
    start, started = time.perf_counter(), datetime.now(UTC)
    data, device = config.load_data(), _device(config.device)
    model = config.build(data.data_shape).to(device)
    folder = _new_folder(out, config)
    _write(folder / "config.yaml", yaml.safe_dump({**asdict(config), "hidden": list(config.hidden)}, sort_keys=False))
    history = fit(
        model,
        data.train,
        held_out=data.held_out,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule=config.schedule,  # type: ignore[arg-type]  # checked by fit
        variances=config.variances,  # type: ignore[arg-type]
        clip_norm=config.clip_norm,
        beta=config.beta,
        expectation=MonteCarlo(config.num_samples),
        evaluation=MonteCarlo(config.evaluation_samples),
        seed=config.seed,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "vaentropy": vaentropy.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "data": {
            "description": data.description,
            "data_shape": data.data_shape,
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
            "sha256_train": _fingerprint(data.train),
        },
        "started": started.isoformat(timespec="seconds"),
        "seconds": seconds,
        "command": sys.argv,
    }
    evaluations = {k: v for k, v in history.to_dict().items() if k != "rows"}
    _write(folder / "history.jsonl", "".join(to_json(row) + "\n" for row in history.rows))
    _write(folder / "evaluation.json", to_json(evaluations, indent=1) + "\n")
    _write(folder / "manifest.json", to_json(manifest, indent=1) + "\n")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors.partial")
    (folder / "model.safetensors.partial").replace(folder / "model.safetensors")
    return Run(folder, config, model, history, data.description, seconds)


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{folder} is no finished run: it has no {name}; train one with vaentropy train") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / name} cannot be read: {error}") from error


def read_config(run: str | Path) -> RunConfig:
    """The settings of a run.

    Raises:
        DataError: the folder is no run, or its config.yaml cannot be read.
        UsageError: config.yaml holds an unknown key or a wrong value.
    """
    yaml = _yaml()
    try:
        values = yaml.safe_load(_read(Path(run), "config.yaml"))
    except yaml.YAMLError as error:
        raise DataError(f"{Path(run) / 'config.yaml'} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"{Path(run) / 'config.yaml'} holds {type(values).__name__}, expected settings with names")
    return RunConfig.from_dict(values)


def load(run: str | Path, *, device: str | torch.device = "cpu", model: VAE | None = None) -> VAE:
    """The trained model of a run, in eval mode.

    Args:
        run: its folder.
        device: where to put it.
        model: your own VAE to load the weights into; by default the run's settings say what to build.

    Raises:
        DataError: the folder is no finished run, or its weights do not fit the model.
    """
    folder = Path(run)
    if model is None:
        shape = json.loads(_read(folder, "manifest.json"))["data"]["data_shape"]
        model = read_config(folder).build(tuple(shape))
    path = folder / "model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no finished run: it has no model.safetensors; train one with vaentropy train"
        ) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
    return model.to(device).eval()


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
    model = load(run, device=_device(device))
    folder = data_folder or config.data_folder
    dtype = DTYPES[config.dtype]
    if data is None:
        split = load_data(config.data, folder=folder, held_out=config.held_out, seed=config.seed, dtype=dtype)
        parts = {"train": split.train, "held_out": split.held_out}
    else:
        parts = {"data": load_data(data, folder=folder, held_out=0.0, seed=config.seed, dtype=dtype).train}
    for x in parts.values():
        if tuple(x.shape[1:]) != model.data_shape:
            raise DataError(
                f"data points of shape {tuple(x.shape[1:])} given, expected {model.data_shape} as in training"
            )
    return {name: evaluate(model, x, expectation=expectation) for name, x in parts.items() if len(x)}
