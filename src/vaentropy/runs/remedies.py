"""Remedies for the model of a run: a copy with optimal variances, a copy without idle latents."""

import math
import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vaentropy.calibration import optimal_factors, require_usable
from vaentropy.checks import require_instance
from vaentropy.config import RunConfig
from vaentropy.data import Dataset
from vaentropy.diagnosis import latents_of
from vaentropy.diagnosis.latents import Collapse, check_collapse
from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.files import write_tensors
from vaentropy.pruning import check_latents, prune
from vaentropy.results import Evaluation
from vaentropy.runs.build import fingerprints, load_own, num_threads
from vaentropy.runs.folder import RunFolder
from vaentropy.runs.room import filled, require_room_beside
from vaentropy.runs.use import load
from vaentropy.vae import VAE

__all__ = ["Pruned", "calibrate_run", "prune_run"]


class Pruned(NamedTuple):
    """What `prune_run` did.

    Attributes:
        folder: of the copy; None where there was nothing to remove, and none was made.
        removed: the latents.
        before, after: evaluations of the training data.
    """

    folder: Path | None
    removed: list[int]
    before: Evaluation
    after: Evaluation

    @property
    def change(self) -> float:
        """ELBO after less ELBO before, nats per data point."""
        return self.after.elbo - self.before.elbo

    @property
    def change_error(self) -> float | None:
        """Its Monte Carlo error; 0 where nothing was removed, None where the evaluations do not say."""
        if self.folder is None:
            return 0.0
        before, after = self.before.mc_stderr, self.after.mc_stderr
        # The draws are as good as independent: with another number of latents they fall to other points.
        return None if before is None or after is None else math.hypot(before.elbo, after.elbo)


class _Opened(NamedTuple):
    """A finished run with the data that it was trained on."""

    folder: RunFolder
    config: RunConfig
    model: VAE
    data: Dataset

    def evaluate(self, model: VAE, expectation: Expectation) -> Evaluation:
        options: dict[str, Any] = {
            "missing": self.config.missing,
            "log_jacobian": self.folder.scaling().log_jacobian,
        }
        with num_threads(self.config, model):
            return evaluate(model, self.data.train, expectation=expectation, **options)


def _open(
    run: str | Path,
    out: str | Path | None,
    overwrite: bool,
    expectation: Expectation,
    data_folder: str | None,
    device: str,
) -> _Opened:
    """The run, after a look at whether a copy can be made."""
    folder = RunFolder(run)
    require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    require_room_beside(folder, out, overwrite=overwrite)
    config, model = folder.config(), load(run, device=device)
    data = load_own(config, folder=data_folder)
    folder.require_same_data(fingerprints(data), data.scaling)
    return _Opened(folder, config, model, data)


def _write_copy(
    opened: _Opened,
    model: VAE,
    after: Evaluation,
    how: str,
    *,
    config: RunConfig,
    out: str | Path | None,
    overwrite: bool,
) -> Path:
    """A folder like that of the run, with another model; `how` names what was done."""
    source = opened.folder
    with filled(out, f"{source.path.resolve().name}-{how}", overwrite=overwrite) as copy:
        copy.write_config(config)
        copy.write_scaling(source.scaling())
        copy.write_json(
            "manifest.json",
            {
                **source.manifest(),
                "status": "finished",
                "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
                f"{how}_from": str(source),
            },
        )
        copy.write_json("evaluation.json", {"train": after.to_dict()})
        write_tensors(copy.file("model.safetensors"), model.state_dict())
    return copy.path


def calibrate_run(
    run: str | Path,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_folder: str | None = None,
    expectation: Expectation = MonteCarlo(16),
    device: str = "auto",
) -> tuple[Path, Evaluation, Evaluation]:
    """A copy of a run whose model has the variances that are optimal for its training data.

    σ² goes into the likelihood's parameters; prior variances into a learned prior, or into the networks where the prior
    is the standard normal one (`VAE.rescale`).

    Args:
        run: its folder; it is not changed.
        out: folder of the copy; by default a new one under runs/.
        overwrite: replace the run that `out` holds.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior.
        device: as in `RunConfig`.

    Returns:
        Folder of the copy, and evaluations of the training data before and after.

    Raises:
        VaentropyError: the run or its data cannot be used, or σ² is fixed (VAE-0).
    """
    if RunFolder(run).config().model == "vae0":
        how = f"learn it with: vaentropy continue {shlex.quote(str(run))} --model vae1"
        raise UsageError(f"{run} given to calibrate, whose σ² is fixed (vae0), expected one that is learned; {how}")
    opened = _open(run, out, overwrite=overwrite, expectation=expectation, data_folder=data_folder, device=device)
    model = opened.model
    before = opened.evaluate(model, expectation)
    # The noise that the optimum is found with would make the residuals 0 by construction: it is not the one that it is
    # judged on, here and by `evaluate_run`.
    other = expectation.with_seed(_next_seed(expectation))
    found = before if other == expectation else opened.evaluate(model, other)
    variance_factor, prior_factor = optimal_factors(found)
    require_usable(variance_factor, "variance")
    require_usable(prior_factor, "prior variance")
    model.rescale(variance_factor=variance_factor, prior_factor=prior_factor)
    after = opened.evaluate(model, expectation)
    copy = _write_copy(opened, model, after, "calibrated", config=opened.config, out=out, overwrite=overwrite)
    return copy, before, after


def _next_seed(expectation: Expectation) -> int:
    return expectation.seed + 1 if expectation.independent else expectation.seed


def prune_run(
    run: str | Path,
    *,
    latents: Iterable[int] | None = None,
    collapse: Collapse = "relative",
    out: str | Path | None = None,
    overwrite: bool = False,
    data_folder: str | None = None,
    expectation: Expectation = MonteCarlo(16),
    device: str = "auto",
) -> Pruned:
    """A copy of a run whose model has no latents that have collapsed on its training data.

    The decoder gets the mean of a removed latent in its place, so that the ELBO stays as it is.

    Args:
        run: its folder; it is not changed.
        latents: which ones to remove; None takes those that have collapsed, and makes no copy where none has.
        collapse: rule by which they have, as for `diagnose`.
        out: folder of the copy; by default a new one under runs/.
        overwrite: replace the run that `out` holds.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior.
        device: as in `RunConfig`.

    Raises:
        VaentropyError: the run or its data cannot be used, there are no such latents, or none would be left.
    """
    check_collapse(collapse)
    removed = None if latents is None else check_latents(latents, RunFolder(run).config().latent_dim)
    opened = _open(run, out, overwrite=overwrite, expectation=expectation, data_folder=data_folder, device=device)
    model = opened.model
    before = opened.evaluate(model, expectation)
    if removed is None:
        table = latents_of(model, before, collapse=collapse)
        assert table is not None  # a VAE's posterior and prior are normal
        removed = table.which("collapsed")
        if len(removed) == len(table):
            raise UsageError(
                f"all latents of {opened.folder} have collapsed, expected one that has not; train anew, or name some"
            )
    if not removed:
        return Pruned(None, [], before, before)
    pruned = prune(model, removed, opened.data.train, missing=opened.config.missing)  # type: ignore[arg-type]
    config = replace(opened.config, latent_dim=opened.config.latent_dim - len(removed))
    after = opened.evaluate(pruned, expectation)
    copy = _write_copy(opened, pruned, after, "pruned", config=config, out=out, overwrite=overwrite)
    return Pruned(copy, removed, before, after)
