"""Rows that the model of a run makes: latents, reconstructions, samples; written to files."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_seed
from vaentropy.conditions import bound_to
from vaentropy.config import RunConfig
from vaentropy.data import names
from vaentropy.data.conditioned import given
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Source
from vaentropy.engines import Engine, engine_or_here
from vaentropy.errors import UsageError
from vaentropy.model import LatentVariableModel
from vaentropy.modes import in_mode
from vaentropy.progress import Report, reporting
from vaentropy.rows import affordable, fill_missing
from vaentropy.runs.build import all_rows, moved, num_threads
from vaentropy.runs.folder import RunFolder
from vaentropy.runs.output import Output, Parts, is_folder
from vaentropy.runs.use import load, require_data_shape
from vaentropy.sharded import MOST_STRETCHES, Stretch, WithModel, as_source, in_order, stretches
from vaentropy.vae import VAE

__all__ = ["encode_run", "reconstruct_run", "sample_run"]

BATCH_SIZE = 1024
# Of what one task returns, or writes to a file; more where one shard has more.
VALUES_PER_RESULT, VALUES_PER_PART = 2**20, 2**23
# That are done before those in front of them.
RESULTS_PER_WORKER = 2


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
    engine: Engine | None = None,
) -> int:
    """Write posterior means of all rows of a data set, in their order.

    Args:
        run: its folder.
        out: a .npy, .csv or .parquet file of latent_dim columns; None writes CSV to stdout. A folder, which is one that
            exists or a text that ends with "/", gets Parquet files part-00000.parquet, …, with the rows in the order of
            these names: with an engine the workers write them, for results that one process would write too slowly.
        data: a data set, file or folder; by default the run's own, all rows as they are in its file, followed by those
            of the held-out set that it comes with, if any.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        condition: one value for each column of the run's condition, as texts, that all rows are given in place of those
            in the data; None takes those.
        variance: write the posterior variances as well, in as many columns more.
        overwrite: replace the file, or the Parquet files of the folder, if there are any.
        device: as in `RunConfig`.
        on_batch: called with the number of rows after each shard of the data; below 0 where a lost worker's rows are
            done again.
        engine: where the work is done; None does it here. See `vaentropy.engines`.

    Returns:
        Rows written.

    Raises:
        VaentropyError: the run, the data or the file cannot be used.
    """
    config = RunFolder(run).config()
    columns = [f"mean_{h}" for h in range(config.latent_dim)]
    columns += [f"variance_{h}" for h in range(config.latent_dim)] if variance else []

    engine = engine_or_here(engine)
    _require_elsewhere(out, data or moved(config.data, data_folder))
    output = _output(out, (len(columns),), columns, overwrite)
    opened = _open(run, data, data_folder, device, condition)
    return _write(opened, _Encoded(variance), output, on_batch, engine)


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
    engine: Engine | None = None,
) -> int:
    """Write reconstructions of all rows of a data set, in their order and in the units of the data as stored.

    Arguments, result and errors are those of `encode_run`; rows have the shape of the data (flattened in tables).
    """
    folder = RunFolder(run)
    engine = engine_or_here(engine)
    _require_elsewhere(out, data or moved(folder.config().data, data_folder))
    output = _output(out, folder.data_shape(), folder.columns(), overwrite)
    opened = _open(run, data, data_folder, device, condition)
    return _write(opened, _Reconstructed(opened.scaling), output, on_batch, engine)


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
        out: a .npy, .csv or .parquet file; None writes CSV to stdout.
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


def _require_elsewhere(out: str | Path | None, data: str) -> None:
    """Refuse to write over the data that are read, or among them.

    Raises:
        UsageError: what is to be written is the data, lies in their folder, or is a folder that they lie in.
    """
    if not isinstance(out, str | Path) or not os.fspath(out) or data in names() or not os.path.exists(data):
        return
    to, read = (Path(os.path.realpath(path)) for path in (out, data))
    within = read.is_dir() and to.is_relative_to(read)
    if to == read or within or (to.is_dir() and read.is_relative_to(to)):
        raise UsageError(f"{out} given to write to, but {data} is read; name another place with --out")


def _output(
    out: str | Path | None, shape: tuple[int, ...], columns: Sequence[str] | None, overwrite: bool
) -> Output | Parts:
    kind = Parts if is_folder(out) else Output
    return kind(out, shape, columns, overwrite=overwrite)  # type: ignore[arg-type]


# --- What workers do ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoded:
    """Rows of posterior means, and of variances if asked for."""

    variance: bool

    def __call__(self, model: LatentVariableModel, batch: Tensor) -> Tensor:
        q = model.posterior(batch)
        return torch.cat([q.mean, q.variance], -1) if self.variance else q.mean


@dataclass(frozen=True)
class _Reconstructed:
    """Rows of reconstructions, in the units of the data as stored."""

    scaling: Scaling

    def __call__(self, model: LatentVariableModel, batch: Tensor) -> Tensor:
        return _as_stored(model.likelihood(model.posterior(batch).mean).mean, self.scaling)


class _Making(WithModel):
    """Rows of one part of the data.

    Args:
        model: of the run.
        rows: those of a batch.
        folder: to which they are written; None returns them.
    """

    def __init__(self, model: VAE, rows: Callable[[LatentVariableModel, Tensor], Tensor], folder: Parts | None):
        super().__init__(model)
        self._rows, self._folder = rows, folder

    def __call__(self, task: tuple[int, Stretch], report: Report) -> Tensor | None:
        number, part = task
        if self._folder is None:
            return torch.cat(list(self.batches(part, report)))
        with self._folder.part(number) as write:
            for rows in self.batches(part, report):
                write(rows)
        return None

    def batches(self, part: Stretch, report: Report) -> Iterator[Tensor]:
        """Rows of each batch."""
        weight = self.model.latent_mean.weight
        for shard in part.shards:
            x = part.source.read(shard)
            for batch in x.split(affordable(BATCH_SIZE, x.shape[1:])):
                with torch.no_grad(), in_mode(self.model, "eval"):
                    filled, _ = fill_missing(batch)
                    bound, given_x, _ = bound_to(self.model, filled.to(weight.device, weight.dtype))
                    rows = self._rows(bound, given_x).cpu()
                yield rows
            report("", part.source.shard_sizes[shard])


def _write(
    opened: _Opened,
    rows: Callable[[LatentVariableModel, Tensor], Tensor],
    output: Output | Parts,
    on_batch: Callable[[int], None] | None,
    engine: Engine,
) -> int:
    config, model, parts, _ = opened
    num_rows, folder = sum(len(x) for x in parts), output if isinstance(output, Parts) else None
    width = max(math.prod(model.data_shape), len(output.columns))
    least = (VALUES_PER_RESULT if folder is None else VALUES_PER_PART) // width
    # What is returned stays short however many rows there are; files do not become more and more.
    most = None if folder is None else MOST_STRETCHES
    tasks = list(enumerate(part for x in parts for part in stretches(as_source(x), least, most=most)))
    report = reporting(on_batch)

    # Where one part takes long, few others wait for it in memory.
    ahead = RESULTS_PER_WORKER if folder is None else None
    opening = output.opened() if isinstance(output, Parts) else output.opened(num_rows)
    work = _Making(model, rows, folder)
    if folder is None and not engine.elsewhere:
        # Batch by batch: those of large data points are not kept until the shard is done.
        making = (each for _, part in tasks for each in work.batches(part, report))
    else:
        making = in_order(engine, work, tasks, report, ahead=ahead)
    # Closed first, so that no worker is at it any more where what it writes to is removed.
    with num_threads(config, model), opening as write, closing(making) as results:
        for made in results:
            if write is not None:
                write(made)
    return num_rows
