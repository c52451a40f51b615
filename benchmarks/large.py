"""Images of 256×256: what bfloat16, activations that are computed again and batches in parts cost and save."""

import statistics
import sys
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as mp

from benchmarks.measure import grown, timed
from benchmarks.results import Result
from vaentropy import vae1
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.training.fit import adam, channels_last, prepared
from vaentropy.training.micro_batches import gradients_in_parts
from vaentropy.training.settings import Settings
from vaentropy.training.step import Precision, training_step

SHAPE, LATENT_DIM = (3, 256, 256), 64
CHANNELS = (32, 64, 128, 256, 512, 512)
# On a GPU, on the CPU, and for a look.
BATCH_SIZES, MICRO_BATCH_SIZES = {"cuda": 64, "cpu": 16}, {"cuda": 16, "cpu": 4}
STEPS, WARMUP = {"cuda": 20, "cpu": 2}, 1
QUICK_CHANNELS, QUICK_BATCH_SIZE, QUICK_MICRO_BATCH_SIZE = (2, 2), 4, 2
MEGABYTE = 1e6


class Way(NamedTuple):
    """How steps are taken."""

    precision: Precision
    recompute: bool
    micro_batch_size: int | None


def run(quick: bool) -> Result:
    """Images a second and the peak of memory of training steps, each way in a process of its own.

    Args:
        quick: a small network.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = QUICK_BATCH_SIZE if quick else BATCH_SIZES[device]
    micro = QUICK_MICRO_BATCH_SIZE if quick else MICRO_BATCH_SIZES[device]
    ways = [
        Way(precision, recompute, rows)
        for precision in ("full", "bf16")
        for rows in (None, micro)
        for recompute in (False, True)
    ]
    rows = [_row(way, device, batch_size, quick) for way in ways]
    where = (
        "tensors on the GPU, data included (torch.cuda.max_memory_allocated)"
        if device == "cuda"
        else "the process, beyond what it had before its first step"
    )
    channels = "-".join(map(str, QUICK_CHANNELS if quick else CHANNELS))
    notes = [
        f"VAE-1 with convolutions of {channels} channels, {LATENT_DIM} latents, analytic variances, batches of "
        f"{batch_size}, on {device}; median of {STEPS[device]} steps after {WARMUP}. MB: the peak of {where}."
    ]
    return Result("Large images", rows=rows, notes=notes)


def _row(way: Way, device: str, batch_size: int, quick: bool) -> dict[str, Any]:
    """Measured in a process of its own, whose peak is that of this way alone."""
    ours, theirs = mp.get_context("spawn").Pipe()
    threads = torch.get_num_threads()
    child = mp.get_context("spawn").Process(target=_tell, args=(theirs, way, device, batch_size, quick, threads))
    child.start()
    theirs.close()
    images_a_second, megabytes = ours.recv()
    child.join()
    row = {
        "precision": way.precision,
        "micro_batch_size": way.micro_batch_size or "",
        "recompute": "yes" if way.recompute else "",
        "images/s": images_a_second,
        "MB": "" if megabytes is None else megabytes,
    }
    print(*row.values(), file=sys.stderr, flush=True)
    return row


def _tell(connection: Connection, way: Way, device: str, batch_size: int, quick: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    connection.send(measured(way, device, batch_size, QUICK_CHANNELS if quick else CHANNELS))


def measured(way: Way, device: str, batch_size: int, channels: tuple[int, ...]) -> tuple[float, float | None]:
    """Images a second, and MB at the peak; None where the system does not tell."""
    torch.manual_seed(0)
    networks = (
        ConvEncoder(SHAPE, channels, recompute=way.recompute),
        ConvDecoder(SHAPE, channels[::-1], recompute=way.recompute),
    )
    model, settings = vae1(SHAPE, LATENT_DIM, networks=networks).to(device), Settings(batch_size=batch_size)
    x = torch.rand(batch_size, *SHAPE, device=device)
    noise = torch.Generator(device).manual_seed(0)
    step = partial(gradients_in_parts, rows=way.micro_batch_size)
    with prepared(model, "analytic"), channels_last(model):
        optimizer, times = adam(model, settings), []
        with grown() as memory:
            for _ in range(WARMUP + STEPS[device]):
                nodes = settings.expectation.nodes(batch_size, model.latent_shape, generator=noise, dtype=x.dtype)
                take = partial(training_step, model, x, nodes, optimizer, adapt=settings.adapt(batch_size))
                times.append(timed(lambda take=take: take(precision=way.precision, gradients=step), device))
    if device == "cuda":
        # What is there is counted from nothing.
        memory = [torch.cuda.max_memory_allocated()]
    return batch_size / statistics.median(times[WARMUP:]), memory[0] / MEGABYTE if memory else None
