"""From settings to data, model and device."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.config import DATA, DTYPES, RunConfig
from vaentropy.data import Coding, Dataset, Source, names
from vaentropy.data import load as load_data
from vaentropy.data.catalogue import WITH_HELD_OUT
from vaentropy.data.scaling import Scaling
from vaentropy.errors import UsageError, shown
from vaentropy.families import FAMILIES
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.seeding import seeded
from vaentropy.vae import VAE

__all__ = [
    "all_rows",
    "build_model",
    "draw_model",
    "fingerprints",
    "keeping_data",
    "load_other",
    "load_own",
    "moved",
    "num_threads",
    "torch_device",
    "with_absolute_paths",
]

DEVICES = ("cpu", "cuda", "mps", "xpu")
# Points per step times parameters. Steps below it are no faster on two threads than on one (measured on two cores: 1.6
# against 2.5 ms at 3 million, 5.5 against 3.8 ms at 17 million), and a hundred times slower where another process
# holds one of the cores.
WORK_WORTH_SHARING = 10_000_000
TABLES = (".csv", ".csv.gz", ".parquet")


def torch_dtype(config: RunConfig) -> torch.dtype:
    """The run's dtype."""
    assert config.dtype in DTYPES
    return getattr(torch, config.dtype)


def build_model(config: RunConfig, data_shape: tuple[int, ...], coding: Coding | None = None) -> VAE:
    """The untrained model, its initial weights drawn from the seed; on the CPU, in the run's dtype.

    Args:
        config: of the run.
        data_shape: of one data point.
        coding: of the condition that comes with each; None without one.

    Raises:
        UsageError: the settings do not fit the data.
    """
    with seeded(config.seed, torch.device("cpu")):
        return draw_model(config, data_shape, coding)


def draw_model(config: RunConfig, data_shape: tuple[int, ...], coding: Coding | None = None) -> VAE:
    """As `build_model`, its initial weights drawn from the global generator."""
    width = None if coding is None else coding.width
    _require_memory(config, data_shape, width)
    return _model(config, data_shape, width).to(torch_dtype(config))


def _model(config: RunConfig, data_shape: tuple[int, ...], width: int | None) -> VAE:
    family = FAMILIES[config.model]
    if config.network == "mlp":
        return family(data_shape, config.latent_dim, config.hidden, condition=width)
    encoder = ConvEncoder(data_shape, config.hidden, recompute=config.recompute)
    networks = encoder, ConvDecoder(data_shape, config.hidden[::-1], recompute=config.recompute)
    return family(data_shape, config.latent_dim, networks=networks, condition=width)


def _require_memory(config: RunConfig, data_shape: tuple[int, ...], width: int | None) -> None:
    """Refuse a model that is larger than the machine, which the system would end without a word."""
    what = f"a model of data_shape={data_shape}, hidden={shown(config.hidden)}, latent_dim={config.latent_dim}"
    try:
        with torch.device("meta"):  # shapes alone
            model = _model(config, data_shape, width)
    except (RuntimeError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{what} given, which no memory can hold; lower hidden or latent_dim") from error
    needed = sum(p.numel() for p in model.parameters()) * torch_dtype(config).itemsize
    if needed > (there := _memory()):
        sizes = f"{needed / 2**30:,.1f} GiB, and this machine has {there / 2**30:,.1f} GiB of memory"
        raise UsageError(f"{what} given, which takes {sizes}; lower hidden or latent_dim")


def _memory() -> int:
    """Bytes of memory, where the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


_KEPT: ContextVar[dict[Any, Dataset] | None] = ContextVar("_KEPT", default=None)


@contextmanager
def keeping_data(last: dict[Any, Dataset]) -> Iterator[None]:
    """For a while `load_own` leaves in `last` what it has loaded, and takes it from there if the same is asked for."""
    token = _KEPT.set(last)
    try:
        yield
    finally:
        _KEPT.reset(token)


def load_own(config: RunConfig, *, folder: str | None = None) -> Dataset:
    """The run's data set, split by its seed.

    Args:
        config: of the run.
        folder: where its files are, if not where the run found them.
    """
    last = _KEPT.get()
    if last is None:
        return _load_own(config, folder)
    key = folder, *(getattr(config, name) for name in DATA)
    if key not in last:
        last.clear()
        last[key] = _load_own(config, folder)
    return last[key]


def _load_own(config: RunConfig, folder: str | None) -> Dataset:
    options = {"columns": config.columns or None, "exclude": config.exclude, "condition": config.condition or None}
    images = {"key": config.key, "image_size": config.image_size, "crop": config.crop}
    return _load(config, moved(config.data, folder), folder, config.held_out, config.scale, **options, **images)


def load_other(
    config: RunConfig,
    data: str,
    scaling: Scaling,
    columns: tuple[str, ...],
    coding: Coding | None = None,
    *,
    folder: str | None = None,
) -> Dataset:
    """All of another data set, read and scaled as the run's own.

    Args:
        config: of the run.
        data: a data set, file or folder.
        scaling: of the run.
        columns: names of the run's features; a table is read by them, whatever else it holds, in whatever order.
        coding: of the run's condition; None reads the features alone.
        folder: where the files of a named data set are, if not where the run found them.
    """
    path, options = Path(os.path.expanduser(data)), {}
    if data.lower().endswith(TABLES) or (path.is_dir() and any(path.glob("*.parquet"))):
        # Numbers, of a table without a header, are positions: there the columns to leave out are too.
        named = not all(name.isdecimal() for name in columns)
        options = (
            {"columns": columns or None}
            if named
            # Columns that make a condition are no features, whether they are read or not.
            else {"columns": config.columns or None, "exclude": (*config.exclude, *config.condition)}
        )
    elif data.lower().endswith(".npz"):
        options = {"key": config.key}
    elif path.is_dir() and data not in names():
        options = {"image_size": config.image_size, "crop": config.crop}
    # Not read beforehand: what is done with them may be shared out, and finds what is wrong as well.
    return _load(config, data, folder, 0.0, scaling, condition=coding, check=False, **options)


def all_rows(
    config: RunConfig,
    data: str | None,
    scaling: Scaling,
    columns: tuple[str, ...],
    coding: Coding | None = None,
    *,
    folder: str | None = None,
) -> list[Tensor | Source]:
    """All rows of a data set in their order, read and scaled as the run's own.

    Args:
        config: of the run.
        data: a data set, file or folder; None takes the run's own, with the held-out set that it comes with, if any.
        scaling, columns, coding: of the run, as for `load_other`.
        folder: where the files of the data set are, if not where the run found them.
    """
    parts = [load_other(config, data or moved(config.data, folder), scaling, columns, coding, folder=folder).train]
    if data is None and config.held_out is None and config.data in WITH_HELD_OUT:
        own = config if coding is not None else replace(config, condition=())
        parts.append(load_own(own, folder=folder).held_out)
    return parts


def moved(data: str, folder: str | None) -> str:
    """The path of a run's file, which may lie in another folder now."""
    if folder is None or data in names():
        return data
    there = Path(os.path.expanduser(folder)) / Path(data).name
    return str(there) if there.exists() else data


def _load(
    config: RunConfig,
    data: str,
    folder: str | None,
    held_out: float | None,
    scale: str | Scaling | None,
    **options: Any,
) -> Dataset:
    return load_data(
        data,
        folder=folder or config.data_folder,
        held_out=held_out,
        seed=config.seed,
        dtype=torch_dtype(config),
        dequantise=config.dequantise,
        missing=config.missing,
        stream=config.stream,
        scale=scale,
        **options,
    )


def torch_device(name: str) -> torch.device:
    """A device by name; "auto" takes a GPU where there is one.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = f"expected auto, or one of {', '.join(DEVICES)} that this machine has"
    if name.split(":")[0] not in DEVICES:
        raise UsageError(f"device={shown(name)} given, {expected}")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device={shown(name)} given, {expected} ({str(error).splitlines()[0]})") from error
    return device


@contextmanager
def num_threads(config: RunConfig, model: VAE) -> Iterator[int]:
    """As many threads of the CPU as the run asks for, or as are worth it."""
    before = torch.get_num_threads()
    work = config.batch_size * sum(parameter.numel() for parameter in model.parameters())
    torch.set_num_threads(config.threads or (1 if work < WORK_WORTH_SHARING else before))
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def with_absolute_paths(config: RunConfig, *, missing: bool = False) -> RunConfig:
    """The same settings from whichever folder they are read.

    Args:
        config: of a run.
        missing: also of a data file that is not there, if what is given looks like the path of one.
    """
    # Leaves "~name" as it is where there is no such user.
    folder = None if config.data_folder is None else os.path.abspath(os.path.expanduser(config.data_folder))
    path = Path(os.path.expanduser(config.data))
    is_path = path.exists() or (missing and (path.suffix or path.name != config.data))
    named = config.data in names() or not is_path
    return replace(config, data=config.data if named else str(path.absolute()), data_folder=folder)


def fingerprints(data: Dataset) -> dict[str, str]:
    """What tells whether data have changed, by the names that the manifest has for it."""
    parts = {"sha256_train": data.train, "sha256_held_out": data.held_out}
    return {name: _fingerprint(part) for name, part in parts.items() if len(part)}


def _fingerprint(data: Tensor | Source) -> str:
    """SHA-256 of shape, dtype and values; of data that are streamed, only the first and the last shard's values."""
    if isinstance(data, Source):
        occupied = [shard for shard, size in enumerate(data.shard_sizes) if size]
        parts = [data.read(shard) for shard in dict.fromkeys((occupied[0], occupied[-1]))]
    else:
        parts = [data]
    digest = hashlib.sha256(f"{(len(data), *parts[0].shape[1:])} {parts[0].dtype}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
    return digest.hexdigest()
