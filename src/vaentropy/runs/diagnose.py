"""Diagnosis of the model that a run left."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.config import RunConfig
from vaentropy.data import Dataset
from vaentropy.data.source import Source
from vaentropy.diagnosis import Diagnosis, Finding, diagnose
from vaentropy.diagnosis.latents import check_collapse
from vaentropy.errors import UsageError
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.runs.build import fingerprints, load_other, load_own, num_threads
from vaentropy.runs.folder import RunFolder
from vaentropy.runs.use import load, require_data_shape
from vaentropy.training.settings import Settings
from vaentropy.vae import VAE

__all__ = ["Diagnosed", "diagnose_run", "diagnosed"]


def diagnose_run(
    run: str | Path,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    expectation: Expectation = MonteCarlo(16),
    device: str = "auto",
    progress: bool | None = None,
    **options: Any,
) -> Diagnosis:
    """Diagnose the model of a run on the data that it was trained on.

    Args:
        run: its folder.
        data: a data set, file or folder to judge overfitting by, in place of the run's own held-out part; read and
            scaled as the run's own data.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior.
        device: as in `RunConfig`.
        progress: a bar on stderr; None shows it on a terminal.
        **options: further ones of `diagnose`, such as its thresholds; `beta` is that of the run's settings.

    Raises:
        VaentropyError: the run or the data cannot be used.
    """
    require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    how = {"device": device, "progress": progress, **options}
    return diagnosed(run, data=data, data_folder=data_folder, expectation=expectation, **how).diagnosis


class Diagnosed(NamedTuple):
    """A run with its diagnosis."""

    folder: RunFolder
    config: RunConfig
    model: VAE
    data: Dataset
    diagnosis: Diagnosis


def diagnosed(
    run: str | Path,
    *,
    data: str | None = None,
    data_folder: str | None = None,
    expectation: Expectation | None = None,
    device: str = "auto",
    progress: bool | None = None,
    **options: Any,
) -> Diagnosed:
    """The run, loaded, and what `diagnose_run` says of it.

    Args:
        expectation: None averages as the run's training did.
    """
    folder = RunFolder(run)
    check_collapse(options.get("collapse", "relative"))
    config, model, scaling = folder.config(), load(run, device=device), folder.scaling()
    own = load_own(config, folder=data_folder)
    folder.require_same_data(fingerprints(own), own.scaling)
    held_out: Tensor | Source = own.held_out
    if data is not None:
        held_out = load_other(config, data, scaling, folder.columns(), folder.coding(), folder=data_folder).train
        require_data_shape(model, held_out)
    for name in ("beta", "missing", "log_jacobian", "held_out", "optimizer"):
        if name in options:
            raise UsageError(f"{name} given, which the run's own settings say; held-out data are given as data=...")
    if expectation is None:
        expectation = Settings(**config.settings()).evaluation_of(len(own.train))
    with num_threads(config, model):
        diagnosis = diagnose(
            model,
            own.train,
            held_out=held_out if len(held_out) else None,
            beta=config.beta,
            expectation=expectation,
            missing=config.missing,  # type: ignore[arg-type]
            log_jacobian=scaling.log_jacobian,
            progress=progress,
            **options,
        )
    diagnosis = replace(
        diagnosis,
        findings=tuple(_with_command(finding, folder, config) for finding in diagnosis.findings),
        # The training of runs knows none.
        untested=tuple(reason for reason in diagnosis.untested if not reason.startswith("weight decay")),
    )
    return Diagnosed(folder, config, model, own, diagnosis)


def _with_command(finding: Finding, folder: RunFolder, config: RunConfig) -> Finding:
    """The finding with the command that does what its remedy says, where there is one."""
    commands = {
        "not_stationary": "continue {}",
        "variance": "calibrate {}",
        "prior_mismatch": "calibrate {}",
        "kl_weight": "continue {} --beta 1",
    }
    if config.model == "vae0":
        commands["fixed_variance"] = "continue {} --model vae1"
        # `calibrate` is for runs whose σ² is learned.
        del commands["variance"], commands["prior_mismatch"]
    if finding.kind == "collapsed" and "prune(" in finding.remedy:
        commands["collapsed"] = "prune {}"
    if finding.kind not in commands or (finding.level == "note" and finding.kind != "collapsed"):
        return finding
    command = commands[finding.kind].format(shlex.quote(str(folder)))
    return replace(finding, remedy=f"{finding.remedy}; run: vaentropy {command}")
