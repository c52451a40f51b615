"""Train every combination of some settings, each as a run of its own, wherever an engine has it done."""

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from vaentropy.checks import require_function, require_instance, require_path
from vaentropy.config import DATA, RunConfig
from vaentropy.data import Dataset
from vaentropy.engines import Engine, engine_or_here
from vaentropy.errors import DataError, TrainingError, UsageError, VaentropyError, out_of_memory
from vaentropy.files import to_json
from vaentropy.progress import Report, progress_bar
from vaentropy.runs.build import (
    build_model,
    fingerprints,
    keeping_data,
    load_own,
    torch_device,
    with_absolute_paths,
)
from vaentropy.runs.combinations import SEED, Combination, combinations, settings_named
from vaentropy.runs.folder import LOCK, RunFolder
from vaentropy.runs.outcomes import BEGUN, FAILED, FINISHED, Sweep, state_of
from vaentropy.runs.plan import REQUEST, TABLE, Plan, names_in
from vaentropy.runs.room import make_folder
from vaentropy.runs.train import resume, train
from vaentropy.training import Interrupted
from vaentropy.training.history import Row
from vaentropy.world import found

__all__ = ["sweep"]

logger = logging.getLogger(__name__)

SWEEPS = Path("sweeps")
MODEL = ("model", "network", "hidden", "latent_dim")


def sweep(
    config: RunConfig,
    vary: Mapping[str, Sequence[Any]],
    *,
    num_seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
    progress: bool | None = None,
    on_run: Callable[[Mapping[str, Any]], None] | None = None,
) -> Sweep:
    """Train every combination of settings from every seed, each as `train` would, into a run folder of its own.

    The folder has a table of all, sweep.csv, written anew after each run from the folders of the runs. The same call
    again keeps runs that are finished, goes on with those that were interrupted or killed, and tries those again that
    failed; it may ask for other values and seeds. A run that fails does not stop the others.

    Args:
        config: what all runs have in common. Its seed is the first; each seed is also that of the split where a
            fraction of the data is held out.
        vary: values by the names of settings, such as `{"latent_dim": [2, 5], "hidden": [[50], [50, 50]]}`; empty for
            replicates alone.
        num_seeds: runs of each combination, from seeds that follow each other.
        out: folder of the sweep, new, empty or that of a sweep of the same settings that varied the same ones; by
            default one under sweeps/, named after data and model. On a cluster all machines have to see the folder.
        overwrite: replace the sweep that `out` holds.
        engine: where runs are trained, such as `vaentropy.engines.Processes(4)`; None trains them here, one after the
            other. Runs end with the same numbers wherever they are trained on as many threads of such a machine.
        progress: a bar of all epochs on stderr; None shows it on a terminal.
        on_run: called with a run's row of the table as it ends.

    Raises:
        UsageError: an argument has a wrong value, a combination cannot be, or the folder holds something else.
        DataError: the data cannot be used, have changed since runs were trained, or files in the folder are damaged.
        Interrupted: by Ctrl-C or SIGTERM, after runs under way have written checkpoints; the same call goes on.
    """
    require_instance("config", config, RunConfig, "a RunConfig")
    engine = engine_or_here(engine)
    require_function("on_run", on_run)
    if not found().alone:
        raise UsageError("sweep called by processes that train together, expected one; start it without torchrun")
    plan = _planned(config, vary, num_seeds, _folder(config, out))
    kept: dict[Any, Dataset] = {}
    states = plan.states(overwrite)
    _check_kept(plan, states, kept)
    _check_data([run for run, state in states.items() if state != FINISHED], engine, kept)
    with _held(plan):
        # Once more: another sweep may have ended here since.
        states = plan.states(overwrite)
        plan.begin(overwrite)
        todo = [run for run, state in states.items() if state != FINISHED]
        call = _Training(plan.folder.absolute(), {} if engine.elsewhere else kept)
        del kept  # workers load theirs
        total = sum(run.config.epochs for run in todo)
        with (
            _interruptible(plan, overwrite),
            progress_bar(total, "epochs", show=progress) as report,
            closing(engine.run(call, todo, report=report)) as answers,
        ):
            for number, _, failure in answers:
                row = plan.end(todo[number], failure)
                if on_run:
                    on_run(row)
    before = tuple(run.name for run, state in states.items() if state == FINISHED)
    return Sweep(plan.folder, tuple(vary), tuple(plan.rows.values()), before, tuple(plan.others()))


def _folder(config: RunConfig, out: str | Path | None) -> Path:
    return SWEEPS / f"{Path(config.data).stem}-{config.model}" if out is None else require_path("out", out)


def _planned(config: RunConfig, vary: Mapping[str, Any], num_seeds: int, folder: Path) -> Plan:
    """What is asked for; runs have the names that they have in the folder, in whatever order settings are given."""
    runs = combinations(config, vary, num_seeds)
    asked = [*(name for name in vary if name != SEED), SEED]
    before = next((names for names in map(settings_named, names_in(folder)) if sorted(names) == sorted(asked)), asked)
    if list(before) != asked:
        runs = combinations(config, {name: vary[name] for name in before if name in vary}, num_seeds)
    return Plan(folder, runs, _request(config, vary, runs, num_seeds))


def _request(config: RunConfig, vary: Mapping[str, Any], runs: Sequence[Combination], num_seeds: int) -> dict[str, Any]:
    """What was asked for, as it is stored: plain values."""
    common = with_absolute_paths(config, missing=True).to_dict()
    values = {name: list(dict.fromkeys(run.varied[name] for run in runs)) for name in vary}
    stored = {"config": {name: value for name, value in common.items() if name not in vary}, "vary": values}
    return json.loads(to_json({**stored, "num_seeds": num_seeds}))


def _chosen(config: RunConfig, names: Sequence[str], *, without: str = "") -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in names if name != without)


def _check_kept(plan: Plan, states: Mapping[Combination, str], kept: dict[Any, Dataset]) -> None:
    """Refuse data that have changed since runs were trained that are kept, of which one seed is looked at.

    Raises:
        DataError: they have, or cannot be read.
    """
    places = {run: RunFolder(plan.folder / run.name) for run, state in states.items() if state in (BEGUN, FINISHED)}
    trained = [run for run, place in places.items() if place.file("manifest.json").exists()]
    first = next((run.config for run, state in states.items() if state != FINISHED), None)
    # Those of the first run that is to be trained last of all: then they are loaded once.
    trained.sort(key=lambda run: first is None or _chosen(run.config, DATA) != _chosen(first, DATA))
    groups: dict[tuple[Any, ...], Combination] = {}
    for run in trained:
        groups.setdefault(_chosen(run.config, DATA, without=SEED), run)
    for looked_at in reversed(groups.values()):
        with keeping_data(kept):
            data = load_own(looked_at.config)
        prints = fingerprints(data)
        for run in trained:
            alike = _chosen(run.config, DATA) == _chosen(looked_at.config, DATA)
            if alike and not places[run].has_same_data(prints, data.scaling):
                how = "put them back, name another folder with --out, or replace the sweep with --overwrite"
                raise DataError(f"the data have changed since {places[run]} was trained on them; {how}")


def _check_data(todo: Sequence[Combination], engine: Engine, kept: dict[Any, Dataset]) -> None:
    """Refuse, before anything is trained, data that cannot be used and models that do not fit them."""
    if not todo:
        return
    if not engine.other_machines:
        for device in dict.fromkeys(run.config.device for run in todo):
            torch_device(device)
    with keeping_data(kept):
        data = load_own(todo[0].config)

    def data_of(run: Combination) -> tuple[Any, ...]:
        return _chosen(run.config, DATA, without=SEED)

    alike = [run for run in todo if data_of(run) == data_of(todo[0])]
    for run in {_chosen(run.config, MODEL): run for run in alike}.values():
        try:
            build_model(run.config, data.data_shape, data.coding)
        except UsageError as error:
            raise UsageError(f"{run.name}: {error}") from error


@contextmanager
def _held(plan: Plan) -> Iterator[None]:
    """Hold the folder; if the call fails before any run has begun, such as where no engine answers, it leaves nothing
    where nothing was."""
    made, begun = not plan.folder.exists(), True
    make_folder(plan.folder, exist_ok=True)
    try:
        with RunFolder(plan.folder).locked():
            new = not (plan.folder / REQUEST).exists()
            try:
                yield
            except Exception:
                begun = not new or bool(plan.all_there())
                for name in () if begun else (REQUEST, TABLE):
                    (plan.folder / name).unlink(missing_ok=True)
                raise
    finally:
        if made and not begun:
            with suppress(OSError):
                (plan.folder / LOCK).unlink(missing_ok=True)
                plan.folder.rmdir()


@contextmanager
def _interruptible(plan: Plan, overwrite: bool) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the work that is under way, and say how to go on."""

    taken = []

    def stop(number: int, frame: FrameType | None) -> None:
        taken.append(number)  # Ray makes another exception of this one
        raise Interrupted(number, "interrupted")

    before = signal.getsignal(signal.SIGTERM)
    ours = threading.current_thread() is threading.main_thread() and before not in (signal.SIG_IGN, None)
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupted:
        plan.read()
        finished = sum(row["status"] == FINISHED for row in plan.rows.values())
        how = f"{finished} of {len(plan.rows)} runs are finished in {plan.folder}; go on with the same command"
        number = taken[0] if taken else getattr(interrupted, "signal", signal.SIGINT)
        raise Interrupted(number, f"interrupted, {how}{', without --overwrite' if overwrite else ''}") from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Training:
    """What an engine does with each run: train it from the beginning, go on with it, or leave it as it is.

    Attributes:
        folder: of the sweep.
        kept: the data that were loaded last; most runs that follow each other have the same.
    """

    folder: Path
    kept: dict[Any, Dataset] = field(default_factory=dict)

    def __call__(self, run: Combination, report: Report) -> None:
        place, state = self.folder / run.name, state_of(self.folder, run)
        done, epochs = 0, run.config.epochs

        def advance(epoch: int) -> None:
            nonlocal done
            report(run.name, epoch - done)
            done = epoch

        def on_epoch(row: Row) -> None:
            advance(int(row["epoch"]))

        options: dict[str, Any] = {"progress": False, "on_epoch": on_epoch}
        advance(len(RunFolder(place).history()) if state == BEGUN else 0)
        try:
            with keeping_data(self.kept):
                if state == BEGUN:
                    resume(place, **options)
                elif state != FINISHED:
                    train(run.config, out=place, overwrite=state == FAILED, **options)
        except (VaentropyError, OSError):
            raise
        except Exception as error:  # the others go on, and this one is tried again by the next call
            logger.exception("%s failed", run.name)
            first = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise TrainingError(out_of_memory(error) or f"{type(error).__name__}: {first}") from error
        advance(epochs)
