"""How far a training step is from the floor: the same networks' forward, backward and Adam alone."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.measure import ratio, timed
from benchmarks.peers import PeerMissing, peer
from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import vae1
from vaentropy.data import load
from vaentropy.training import fit
from vaentropy.training.history import Row
from vaentropy.vae import VAE

NUM_POINTS, DATA_DIM, HIDDEN, LATENT_DIM = 19_200, 784, (512,), 10
BATCH_SIZES, SMALL_BATCH = (64, 256), 200


def bare_epoch(model: VAE, x: torch.Tensor, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
    """Steps on one slice of a resident tensor after the other, as if written for this one model by hand: no shuffling,
    no sums, σ² = 1.
    """
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        features = model.encoder(batch)
        mean, log_variance = model.latent_mean(features), model.latent_log_variance(features)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = model.head.mean(model.decoder(model.latent_layer(z)))
        squared_error = (batch - reconstruction).square().sum()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = None
        (0.5 * (squared_error + kl) / len(batch)).backward()
        optimizer.step()


def beside_fit(
    model: VAE,
    x: torch.Tensor,
    batch_size: int,
    others: Mapping[str, Callable[[], object]],
    repetitions: int,
    **options,
) -> dict[str, list[float]]:
    """Seconds of each epoch of `fit` ("ours") and of each other candidate, which run between two epochs.

    The first epoch warms up, and the last one, which ends in an evaluation, is left out. A candidate that returns a
    number has measured its own seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
    own: list[float | None] = []
    begun = time.perf_counter()

    def end_epoch(row: Row) -> None:
        nonlocal begun
        seconds = {"ours": time.perf_counter() - begun}
        for name, call in others.items():
            taken = timed(lambda call=call: own.append(call()))
            seconds[name] = taken if own[-1] is None else own[-1]
        if 1 < row["epoch"] <= repetitions + 1:
            for name, each in seconds.items():
                times[name].append(each)
        begun = time.perf_counter()

    fit(model, x, epochs=repetitions + 2, batch_size=batch_size, on_epoch=end_epoch, **options)
    return times


def run(quick: bool) -> Result:
    """Milliseconds per step of `fit` with progress bar, history and entropies, as a ratio to those of the bare step."""
    num_points, repetitions = (640, 3) if quick else (NUM_POINTS, 15)
    x, rows, notes = images(num_points, DATA_DIM), [], []
    for batch_size in BATCH_SIZES:
        row, remarks = _compared(x, HIDDEN, LATENT_DIM, batch_size, None if quick else "pythae", repetitions)
        rows.append({"problem": f"784-512-10-512-784, batch {batch_size}", **row})
        notes += remarks
    small = load("digits").train.repeat(1 if quick else 10, 1)
    row, remarks = _compared(small, (50, 50), 2, SMALL_BATCH, None if quick else "jax", repetitions)
    rows.append({"problem": "digits, 64-50-50-2-50-50-64, batch 200", **row})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    notes += remarks
    notes.append(
        "Each time is that of an epoch of `fit`, between two of the other: first all with the bare step, then all with "
        "the peer, whose process would leave cold caches to whichever comes next. The ratios are of medians, with the "
        "lowest and highest of two side by side. Bare: forward, backward and fused Adam on slices of a resident "
        "tensor, without shuffling, sums, history or a learned σ²."
    )
    return Result("A training step beside its floor", rows=rows, notes=list(dict.fromkeys(notes)))


def _compared(
    x: torch.Tensor, hidden: Sequence[int], latent_dim: int, batch_size: int, name: str | None, repetitions: int
) -> tuple[dict[str, Any], list[str]]:
    """A row: ours and the bare step, then ours and a peer; and why the peer is not there."""
    steps, model = math.ceil(len(x) / batch_size), vae1(x.shape[1], latent_dim, hidden)
    with _drawn():
        bare = {"bare": bare_epochs(x, hidden, latent_dim, batch_size)}
        seconds = beside_fit(model, x, batch_size, bare, repetitions, progress=True)
    per_step = {each: 1e3 * statistics.median(times) / steps for each, times in seconds.items()}
    row: dict[str, Any] = {"ours ms": per_step["ours"], "bare ms": per_step["bare"]}
    row["ours / bare"] = str(ratio(seconds["ours"], seconds["bare"]))
    if name is None:
        return row, []
    try:
        with peer(name, threads=torch.get_num_threads()) as seconds_per_step, _drawn():

            def epoch() -> float:
                return steps * seconds_per_step(batch_size=batch_size, steps=steps)

            seconds = beside_fit(model, x, batch_size, {name: epoch}, repetitions, progress=True)
    except PeerMissing as error:
        return row, [f"{name} skipped: {error}"]
    row[f"{name} ms"] = 1e3 * statistics.median(seconds[name]) / steps
    row[f"{name} / ours"] = str(ratio(seconds[name], seconds["ours"]))
    return row, []


@contextmanager
def _drawn() -> Iterator[None]:
    """The progress bar is drawn, where nobody sees it."""
    with redirect_stderr(_Terminal()) as terminal, patch.dict(os.environ, TERM="xterm"):
        yield
    assert "/" in terminal.getvalue(), "no bar was drawn"


class _Terminal(StringIO):
    """Takes what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def bare_epochs(x: torch.Tensor, hidden: Sequence[int], latent_dim: int, batch_size: int) -> Callable[[], None]:
    """One epoch of bare steps at each call, of a model of its own."""
    model = vae1(x.shape[1], latent_dim, hidden)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return lambda: bare_epoch(model, x, batch_size, optimizer)
