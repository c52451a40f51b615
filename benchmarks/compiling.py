"""What torch.compile, CUDA graphs, bfloat16 and channels-last memory do to a training step here."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import nn

from benchmarks.measure import interleaved, ratio, timed
from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1, vae3
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.training.compiling import Compiled
from vaentropy.training.graphed import Graphed
from vaentropy.training.step import gradients, training_step
from vaentropy.vae import VAE

SHAPE = (1, 28, 28)
STEPS = 20  # of one measurement


def run(quick: bool) -> Result:
    """Ratios of a step's time to the plain step's, and after how many steps compiling has paid for itself."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problems: dict[str, tuple[Callable[[], VAE], int]] = {
        "vae1 64-50-50-2, batch 200": (lambda: vae1(64, 2), 200),
        "vae3 64-50-50-2, batch 200": (lambda: vae3(64, 2), 200),
        "vae1 784-512-10, batch 64": (lambda: vae1(784, 10, (512,)), 64),
        "vae1 784-512-10, batch 256": (lambda: vae1(784, 10, (512,)), 256),
        "vae1 28×28, conv 32-64, batch 100": (_convolutional, 100),
    }
    # Else a second compilation of the same code would find the first one's files.
    with inductor.patch(force_disable_caches=True):
        rows = [
            _row(problem, make, batch_size, device, quick)
            for problem, (make, batch_size) in list(problems.items())[: 1 if quick else None]
        ]
    # Which of them there are depends on the row.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    notes = [] if device == "cuda" else ["No GPU here: CUDA graphs and bfloat16 on tensor cores are not measured."]
    return Result("Compiled steps, bfloat16, channels-last", rows=rows, notes=notes)


def _row(problem: str, make: Callable[[], VAE], batch_size: int, device: str, quick: bool) -> dict[str, Any]:
    steps = {
        "plain": _steps(make, batch_size, device),
        "bf16": _steps(make, batch_size, device, precision="bf16"),
        "compiled": _steps(make, batch_size, device, compiled=True),
    }
    if make is _convolutional:
        steps["channels-last"] = _steps(make, batch_size, device, memory_format=torch.channels_last)
    if device == "cuda":
        steps["recorded"] = _steps(make, batch_size, device, recorded=True)
        steps["recorded bf16"] = _steps(make, batch_size, device, recorded=True, precision="bf16")
        steps["compiled, recorded"] = _steps(make, batch_size, device, compiled=True, recorded=True)
    with_compiling = timed(steps["compiled"], device)
    times = interleaved(steps, 3 if quick else 15, device=device)
    plain, compiled = (statistics.median(times[name]) for name in ("plain", "compiled"))
    seconds, gained = with_compiling - compiled, (plain - compiled) / STEPS
    row: dict[str, Any] = {"problem": problem, "plain ms": 1e3 * plain / STEPS}
    row |= {f"{name} / plain": str(ratio(times[name], times["plain"])) for name in steps if name != "plain"}
    row["s to compile"] = seconds
    row["pays after steps"] = f"{math.ceil(seconds / gained / 1000) * 1000:,}" if gained > 0 else "never"
    return row


def _convolutional() -> VAE:
    return vae1(SHAPE, 10, networks=(ConvEncoder(SHAPE, (32, 64)), ConvDecoder(SHAPE, (64, 32))))


def _steps(
    make: Callable[[], VAE],
    batch_size: int,
    device: str,
    *,
    compiled: bool = False,
    recorded: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
    **options: Any,
) -> Callable[[], None]:
    """Some steps at each call, of a model of its own."""
    torch.manual_seed(0)
    model: nn.Module = make().to(device)
    model.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing in torch's stubs
    x = images(batch_size, math.prod(model.data_shape)).reshape(batch_size, *model.data_shape).to(device)
    for parameter in model.variance_parameters():
        parameter.requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, generator = torch.optim.Adam(learned, fused=True), torch.Generator(device).manual_seed(0)
    call = Compiled() if compiled else gradients
    call = Graphed(call, model.parameters) if recorded else call

    def steps() -> None:
        for _ in range(STEPS):
            nodes = MonteCarlo(1).nodes(batch_size, model.latent_shape, generator=generator, dtype=x.dtype)
            training_step(model, x, nodes, optimizer, adapt=0.1, gradients=call, **options)

    return steps
