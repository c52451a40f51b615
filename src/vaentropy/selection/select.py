"""`select`: how many latents the data support."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any, cast

import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_number, require_seed
from vaentropy.data.conditioned import ConditionedRows
from vaentropy.data.dataset import Dataset, split
from vaentropy.data.given import Data, as_rows
from vaentropy.data.source import Part, Source
from vaentropy.engines import Engine, engine_or_here, require_engine
from vaentropy.errors import DataError, TrainingError, UsageError, nearest, shown
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.families import FAMILIES
from vaentropy.progress import progress_bar
from vaentropy.rows import as_tensor, require_finite
from vaentropy.seeding import seeded
from vaentropy.selection.candidates import CPU, Fitted, Measured, Parts, Trainer, data_moments, fit_linear
from vaentropy.selection.report import Selection
from vaentropy.selection.summary import summarise
from vaentropy.training.settings import Settings
from vaentropy.vae import VAE
from vaentropy.world import found

__all__ = ["check_candidates", "select"]

Make = Callable[[int], VAE]

LINEAR = "linear"
HELD_OUT = 0.2
NUM_SEEDS = 2
# `fit` options that are not the user's here, and why.
OWN = {
    "patience": "held-out data that say when to stop would judge themselves; use plateau, or fewer epochs",
    "seed": "give seed to select itself; it is that of the first training",
    "evaluate_every": "held-out data are evaluated after the last epoch",
}


def select(
    data: Data | Dataset,
    latent_dims: Iterable[int] = range(1, 7),
    *,
    model: str | Make = "vae1",
    held_out: Data | float | int | None = None,
    num_seeds: int | None = None,
    seed: int = 0,
    num_errors: float = 2.0,
    evaluation_expectation: Expectation = MonteCarlo(16),
    engine: Engine | None = None,
    progress: bool | None = None,
    **fit_options: Any,
) -> Selection:
    """Say how many latents the data support, by candidates on the same data, seeds and noise.

    Candidates are compared by the ELBO of data that were not trained on, point by point: that of a larger model need
    not be higher. The smallest one that is not clearly below the best is supported, since the best of several estimates
    is so by luck too; collapsed latents do not count. Larger ones of which neither held-out data nor BIC say that they
    are worse remain undecided. Errors are those of paired differences and, where each is trained from several seeds, of
    training. What they leave out is that another training part would give other models.

    In a group of torch.distributed each process has to call it alike: trainings are shared as those of `fit`, all else
    is done by each.

    Args:
        data: (N, *data_shape), a tensor, array, data frame, `Source` or map-style torch Dataset, or what
            `vaentropy.data.load` returns, whose held-out part then decides; with a condition as `given(x, c)`.
        latent_dims: candidates, two or more; 0 is possible for "linear".
        model: "linear", the linear VAE in closed form, of which ELBO and log-likelihood are one; "vae0", "vae1", "vae2"
            or "vae3"; or a function from latent_dim to a new VAE, such as `lambda h: vae1(64, h)`.
        held_out: data that decide, or the fraction of the rows to hold out; None takes the data set's own, or a fifth;
            0 holds none out, and BIC decides.
        num_seeds: trainings of each candidate, from the same seeds, of which the one with the best ELBO of the training
            data counts; None makes 2.
        seed: of the split and the first training; the others follow it.
        num_errors: standard errors that a difference has to have to count.
        evaluation_expectation: how evaluations average over the posterior.
        engine: where candidates are trained, such as `vaentropy.engines.Processes(4)`; None trains them here, one after
            the other. For other processes a function `model` has to be one of a module; models come back on the CPU.
            On as many threads of such a machine all numbers are the same to the bit; on others sums round differently.
        progress: a bar on stderr; None shows it on a terminal.
        **fit_options: as for `fit`, such as `epochs`; `missing` is also that of evaluations.

    Returns:
        Selection, which prints.

    Raises:
        UsageError: an argument has a wrong value, or no candidate is possible.
        DataError: data of a wrong shape, or not finite.
        TrainingError: every training of every candidate diverged.
    """
    require_engine(engine)
    linear = isinstance(model, str) and model == LINEAR
    candidates = check_candidates(latent_dims, least=0 if linear else 1)
    require_seed(seed)
    require_number("num_errors", num_errors)
    if linear:
        _refuse({"num_seeds": num_seeds, "engine": engine, **fit_options})
    settings = _settings(fit_options, evaluation_expectation, candidates[-1])
    seeds = range(seed, seed + require_count("num_seeds", NUM_SEEDS if num_seeds is None else num_seeds))
    require_seed(seeds[-1])
    parts = _parts(data, held_out, seed, settings["missing"])
    if linear and isinstance(parts.train, Source) and parts.train.condition_width:
        raise UsageError(
            'model="linear" given for data with a condition, which it takes none of, expected vae0 to vae3'
        )
    if linear:
        fitted, failures = _in_closed_form(parts, candidates)
    else:
        trainer = Trainer(
            make=_checked(model, candidates, parts.train, seed),
            parts=parts,
            largest=candidates[-1],
            expectation=evaluation_expectation,
            settings=settings,
        )
        fitted, failures = _trained(trainer, candidates, seeds, engine_or_here(engine), progress)
    name = model if isinstance(model, str) else "your model"
    return summarise(fitted, failures, parts, model=name, data=_description(data), num_errors=num_errors)


# --- Arguments ------------------------------------------------------------------------------------------------------


def check_candidates(latent_dims: Any, *, least: int) -> list[int]:
    """Two or more different whole numbers of at least `least`, sorted.

    Raises:
        UsageError: they are something else.
    """
    try:
        each = list(dict.fromkeys(latent_dims))
    except TypeError:
        each = []
    if len(each) < 2 or isinstance(latent_dims, str):
        raise UsageError(f"latent_dims={shown(latent_dims)} given, expected two or more numbers, such as range(1, 7)")
    return sorted(require_count("latent_dims", latent_dim, least=least) for latent_dim in each)


def _refuse(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f'{name} given with model="linear", expected no settings of training: it has a closed form'
            )


def _settings(options: Mapping[str, Any], evaluation_expectation: Expectation, largest: int) -> dict[str, Any]:
    """What `fit` is given, checked."""
    known = [f.name for f in fields(Settings) if f.name not in OWN]
    for name in options:
        if name in OWN:
            raise UsageError(f"{name} given, which select does not take: {OWN[name]}")
        if name not in known:
            hint = nearest(name, known) or f"there are {', '.join(known)}"
            raise UsageError(f"unknown option {shown(name)} of fit; {hint.strip()}")
    checked = Settings(**options, evaluation_expectation=evaluation_expectation)
    if not evaluation_expectation.independent:
        # Some have no nodes for many latents.
        generator = evaluation_expectation.generator()
        evaluation_expectation.nodes(1, (largest,), generator=generator, dtype=torch.float64)
    return {**options, "epochs": checked.epochs, "missing": checked.missing}


def _parts(data: Any, held_out: Any, seed: int, missing: str) -> Parts:
    own = data if isinstance(data, Dataset) else None
    rows = _rows(data if own is None else own.train, "data", missing)
    if not len(rows):
        raise DataError(f"data of shape {_shape(rows)} given, expected rows to train on")
    if held_out is None:
        held_out = HELD_OUT if own is None else own.held_out
    if not isinstance(held_out, int | float):
        chosen = _rows(held_out, "held_out", missing)
        if len(chosen):
            _require_alike(chosen, rows)
        return Parts(rows, chosen if len(chosen) else None)
    fraction = float(held_out)
    if isinstance(rows, Tensor):
        train, chosen = split(rows, fraction, seed=seed)
    elif isinstance(rows, ConditionedRows):
        train, chosen = (rows.like(part) for part in split(rows.rows, fraction, seed=seed))
    else:
        train, chosen = (Part(rows, fraction, seed=seed, held_out=part) for part in (False, True))
    return Parts(train, chosen if len(chosen) else None)


def _rows(data: Any, name: str, missing: str) -> Tensor | Source:
    """Data as rows that can be read again in the same order."""
    rows = as_rows(data)
    if rows is None:
        rows = as_tensor(data)
    if len(shape := _shape(rows)) < 2 or 0 in shape[1:]:
        raise DataError(f"{name} of shape {shape} given, expected (N, features, ...); reshape it")
    if isinstance(rows, Tensor):
        # Before they are split, so that the row is that of the user.
        require_finite(rows, name, missing=missing == "ignore")
    elif isinstance(rows, ConditionedRows):
        require_finite(rows.rows, name, missing=missing == "ignore")
    return rows


def _shape(rows: Tensor | Source) -> tuple[int, ...]:
    return tuple(rows.shape) if isinstance(rows, Tensor) else (len(rows), *rows.data_shape)


def _require_alike(held_out: Tensor | Source, rows: Tensor | Source) -> None:
    if (shape := _features_shape(rows)) != (other := _features_shape(held_out)):
        given = f"held_out of shape {(len(held_out), *other)} given"
        raise DataError(f"{given}, expected (M, {', '.join(map(str, shape))}) as data have")
    if (width := _condition_width(rows)) != (other := _condition_width(held_out)):
        given = f"held_out with a condition of width {other} given"
        raise DataError(f"{given}, expected {width} as data have; pass ve.given(x, condition) for both, or for none")


def _features_shape(rows: Tensor | Source) -> tuple[int, ...]:
    return tuple(rows.shape[1:]) if isinstance(rows, Tensor) else rows.features_shape


def _condition_width(rows: Tensor | Source) -> int:
    return 0 if isinstance(rows, Tensor) else rows.condition_width


def _description(data: Any) -> str:
    return f"{data.name} ({data.description})" if isinstance(data, Dataset) else ""


def _checked(model: Any, candidates: Sequence[int], rows: Tensor | Source, seed: int) -> Make:
    """What makes a new model of the rows for a latent_dim; tried once for each candidate before any is trained."""
    data_shape = _features_shape(rows)
    width = _condition_width(rows)
    if isinstance(model, str):
        if model not in FAMILIES:
            known = (LINEAR, *FAMILIES)
            raise UsageError(f"model={shown(model)} given, {nearest(model, known)}expected one of {', '.join(known)}")
        return _OfFamily(model, data_shape, width or None)
    if not callable(model) or isinstance(model, torch.nn.Module):
        given = f"model of type {type(model).__name__} given"
        raise UsageError(f"{given}, expected a name, or a function from latent_dim to a new VAE: lambda h: vae1(64, h)")
    for latent_dim in candidates:
        with seeded(seed, CPU):
            made = model(latent_dim), model(latent_dim)
        if not isinstance(made[0], VAE) or made[0] is made[1]:
            given = "the same model twice" if isinstance(made[0], VAE) else type(made[0]).__name__
            raise UsageError(f"model({latent_dim}) returned {given}, expected a new VAE at each call")
        if made[0].latent_shape != (latent_dim,) or made[0].data_shape != data_shape:
            given = f"a VAE of {made[0].latent_shape[0]} latents for data of shape {made[0].data_shape}"
            raise UsageError(f"model({latent_dim}) returned {given}, expected {latent_dim} latents and {data_shape}")
        if made[0].condition_width != width:
            given = f"a VAE with a condition of width {made[0].condition_width}"
            raise UsageError(f"model({latent_dim}) returned {given}, expected {width} as the data have; condition=...")
    return cast(Make, model)


@dataclass(frozen=True)
class _OfFamily:
    """Makes models by the name of their family; can be sent to another process."""

    name: str
    data_shape: tuple[int, ...]
    condition: int | None

    def __call__(self, latent_dim: int) -> VAE:
        return FAMILIES[self.name](self.data_shape, latent_dim, condition=self.condition)


def _trained(
    trainer: Trainer, candidates: Sequence[int], seeds: Sequence[int], engine: Engine, progress: bool | None
) -> tuple[list[Fitted], dict[int, str]]:
    """Each candidate from every seed, wherever the engine has it done."""
    if engine.elsewhere and not found().alone:
        raise UsageError("engine given in a group of torch.distributed, expected one of the two; leave engine out")
    tasks = [(latent_dim, seed) for latent_dim in candidates for seed in seeds]
    trained: dict[int, list[Measured]] = {latent_dim: [] for latent_dim in candidates}
    errors: dict[int, dict[int, TrainingError]] = {latent_dim: {} for latent_dim in candidates}
    best: dict[int, Fitted] = {}
    total = len(tasks) * trainer.settings["epochs"]
    with (
        progress_bar(total, "epochs", show=progress) as report,
        closing(engine.run(trainer, tasks, report=report)) as answers,
    ):
        for number, measured, failure in answers:
            latent_dim, seed = tasks[number]
            if failure is None:
                trained[latent_dim].append(measured)
            elif isinstance(failure, TrainingError):
                errors[latent_dim][seed] = failure
            else:
                raise failure
            if trained[latent_dim] and len(trained[latent_dim]) + len(errors[latent_dim]) == len(seeds):
                # At once, so that the memory of the others is free again.
                best[latent_dim] = trainer.best(latent_dim, trained[latent_dim], errors[latent_dim])
                trained[latent_dim] = []
    first = {latent_dim: errors[latent_dim][seeds[0]] for latent_dim in candidates if latent_dim not in best}
    if not best:
        raise first[candidates[-1]]
    # What an error advises is meant for one model alone.
    failures = {latent_dim: str(error).split(";")[0] for latent_dim, error in first.items()}
    return [best[latent_dim] for latent_dim in candidates if latent_dim in best], failures


def _in_closed_form(parts: Parts, candidates: Sequence[int]) -> tuple[list[Fitted], dict[int, str]]:
    """Those that can be fitted, and why the others cannot; the error of the last one where none can."""
    moments = data_moments(parts.train)
    fitted, failures = [], {}
    for latent_dim in candidates:
        try:
            fitted.append(fit_linear(latent_dim, moments, parts))
        except UsageError as error:
            failures[latent_dim] = str(error).split(";")[0]
            if len(failures) == len(candidates):
                raise
    return fitted, failures
