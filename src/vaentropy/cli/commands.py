"""The verbs of runs, each a thin layer over one public function. Nothing here imports torch before a verb runs."""

from typing import Any

import click

from vaentropy.cli import options
from vaentropy.cli.group import vaentropy
from vaentropy.config import FAMILIES


@vaentropy.command()
@click.argument("data", required=False, type=options.PATH)
@click.option("--config", type=options.PATH, help="YAML file with settings; options on the command line override it.")
@click.option("--resume", metavar="RUN", type=options.PATH, help="Go on with the interrupted run in folder RUN.")
@click.option("--out", type=options.PATH, help="Folder of the run, new or empty; default: a new one under runs/.")
@options.overwrite
@options.log
@options.report
@options.as_json
@options.settings
def train(
    data: str | None,
    config: str | None,
    resume: str | None,
    out: str | None,
    overwrite: bool,
    log: tuple[str, ...] | None,
    report: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a VAE on DATA and print its ledger.

    DATA is the name of a data set (digits, mnist, fashion-mnist, susy, pca, pca-ring, ...), a file (.npy, .npz, .csv,
    .csv.gz, .parquet), or a folder of Parquet files or images; default: digits.

    Several processes train one model: torchrun --nproc-per-node N -m vaentropy train ...
    """
    from vaentropy.cli.launched import launched
    from vaentropy.errors import UsageError
    from vaentropy.runs import resume as resume_run
    from vaentropy.runs import train as train_run

    data_folder = given["data_folder"]
    with launched() as speaks:
        if resume is not None:
            del given["data_folder"]
            others = {"data": data, "config": config, "out": out, "overwrite": overwrite or None, **given}
            named = [name for name, value in others.items() if value is not None]
            if named:
                raise UsageError(f"--resume {resume} given with {named[0]}, expected no settings: a run keeps its own")
            run = resume_run(resume, data_folder=data_folder, log=log or ())
        else:
            settings = options.settings_of(config, {"data": data, **given})
            run = train_run(settings, out=out, overwrite=overwrite, log=log or ())
    if speaks:
        _show(run, as_json, report, data_folder)


def _show(run: Any, as_json: bool, report: bool, data_folder: str | None) -> None:
    """What came of a training, and its report."""
    from vaentropy.files import to_json

    evaluation, held_out = run.history.train, run.history.held_out
    if as_json:
        result = {"run": str(run.folder), "data": run.description, **evaluation.to_dict(vectors=False)}
        result["held_out"] = None if held_out is None else held_out.to_dict(vectors=False)
        result |= {"seconds": run.seconds, "remarks": run.remarks}
        click.echo(to_json({**result, "report": _report(run, data_folder) if report else None}))
        return
    click.echo(f"{run.config.model} trained on {run.config.data} ({run.description})\n")
    click.echo(evaluation)
    if held_out is not None:
        stored = f" ({held_out.data_elbo:.4f} in the units of the data as stored)" if held_out.log_jacobian else ""
        click.echo(
            f"held out: ELBO {held_out.elbo:.4f} ± {held_out.stderr.elbo:.4f}{stored}, "
            f"{held_out.num_points:,} data points"
        )
    for remark in run.remarks:
        click.echo(remark)
    click.echo(f"\nRun in {run.folder}, {run.seconds:.1f} s", err=True)
    if report and (path := _report(run, data_folder)):
        click.echo(f"Report in {path}", err=True)


def _report(run: Any, data_folder: str | None) -> str | None:
    """The report at the end of a training, or a line that says why there is none: the run itself is finished."""
    from vaentropy.errors import VaentropyError, printable
    from vaentropy.runs import report_run

    try:
        return str(report_run(run.folder, data_folder=data_folder))
    except Exception as error:  # whatever it is, memory of a GPU included
        kind = "" if isinstance(error, VaentropyError | OSError) else f"{type(error).__name__}: "
        click.echo(f"No report: {kind}{printable(' '.join(str(error).split()))}", err=True)
        return None


@vaentropy.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=options.PATH)
@click.option("--out", type=options.PATH, help="The page; default: report.html in RUN, or here for several.")
@options.data_folder
@click.option("--num-samples", type=int, help="Draws of z per point; default: as after the training.")
@options.device
@click.option("--overwrite", is_flag=True, help="Replace a file that is no report.")
@options.as_json
def report(runs: tuple[str, ...], out: str | None, num_samples: int | None, as_json: bool, **given: Any) -> None:
    """Write one HTML page about RUN: diagnosis, figures, tables, settings; or about several beside each other."""
    from vaentropy.expectation import MonteCarlo
    from vaentropy.files import to_json
    from vaentropy.runs import report_run

    expectation = None if num_samples is None else MonteCarlo(num_samples)
    path = report_run(runs, out=out, expectation=expectation, **given)
    click.echo(to_json({"runs": runs, "report": str(path)}) if as_json else path)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.option("--data", type=options.PATH, help="Evaluate this data set, file or folder instead of the run's own data.")
@options.data_folder
@click.option("--num-samples", type=int, help="Draws of z per point; default: as after the training.")
@click.option(
    "--log-likelihood", "importance_samples", metavar="K", type=int, help="Also bound log p(x) by K draws per point."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@options.device
@options.engines_if_asked
@options.as_json
def evaluate(
    run: str, num_samples: int | None, importance_samples: int | None, seed: int, as_json: bool, **given: Any
) -> None:
    """Print the ledgers of the model in folder RUN, on the data it was trained and held out on or on others."""
    from vaentropy.checks import require_count
    from vaentropy.expectation import MonteCarlo
    from vaentropy.files import to_json
    from vaentropy.progress import counting, progress_bar
    from vaentropy.runs import evaluate_run, log_likelihood_run

    bounds: dict[str, Any] = {}
    if importance_samples is not None:
        # Before the evaluation, which may take long.
        require_count("log_likelihood", importance_samples)
    given |= {"engine": _engine(given)}
    with progress_bar(None, "data points") as report:
        expectation = None if num_samples is None else MonteCarlo(num_samples, seed)
        parts = evaluate_run(run, expectation=expectation, seed=seed, on_batch=counting(report), **given)
    if importance_samples is not None:
        with progress_bar(None, f"data points, {importance_samples} draws each") as report:
            draws = {"num_samples": importance_samples, "seed": seed}
            bounds = log_likelihood_run(run, on_batch=counting(report), **draws, **given)
    if as_json:
        found = {name: part.to_dict() for name, part in parts.items()}
        for name, bound in bounds.items():
            found[name]["log_likelihood"] = bound.to_dict()
        click.echo(to_json({"run": run, **found}))
    else:
        under = {name: f"\n\n{bound}" for name, bound in bounds.items()}
        click.echo("\n\n".join(f"[{name}]\n{part}{under.get(name, '')}" for name, part in parts.items()))


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.option("--data", type=options.PATH, help="Judge overfitting by this data set, file or folder.")
@options.data_folder
@click.option("--tolerance", type=float, default=0.1, show_default=True, help="Nats below which nothing is a problem.")
@click.option("--overfitting", type=float, default=1.0, show_default=True, help="Nats that held-out data may cost.")
@click.option("--collapse", default="relative", show_default=True, help=options.COLLAPSE)
@click.option("--num-samples", type=int, default=16, show_default=True, help="Draws of z per point.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--strict", is_flag=True, help="Exit with 1 if there is a problem.")
@options.device
@options.as_json
def diagnose(run: str, num_samples: int, seed: int, collapse: str, strict: bool, as_json: bool, **given: Any) -> int:
    """Tell what is wrong with the model in folder RUN, how sure that is, and what to do."""
    from vaentropy.expectation import MonteCarlo
    from vaentropy.files import to_json
    from vaentropy.runs import diagnose_run

    rule = options.collapse_of(collapse)
    diagnosis = diagnose_run(run, expectation=MonteCarlo(num_samples, seed), collapse=rule, **given)
    click.echo(to_json({"run": run, **diagnosis.to_dict()}) if as_json else diagnosis)
    return int(strict and not diagnosis.clean)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.option(
    "--out", type=options.PATH, help="Folder of the calibrated copy, new or empty; default: a new one under runs/."
)
@options.overwrite
@options.data_folder
@click.option("--num-samples", type=int, default=16, show_default=True, help="Draws of z per point.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@options.device
@options.as_json
def calibrate(run: str, num_samples: int, seed: int, as_json: bool, **given: Any) -> None:
    """Copy folder RUN with the variances that are optimal for its training data."""
    from vaentropy.expectation import MonteCarlo
    from vaentropy.files import to_json
    from vaentropy.runs import calibrate_run

    folder, before, after = calibrate_run(run, expectation=MonteCarlo(num_samples, seed), **given)
    if as_json:
        parts = {"before": before.to_dict(vectors=False), "after": after.to_dict(vectors=False)}
        click.echo(to_json({"run": str(folder), **parts}))
    else:
        click.echo(f"{after}\n\nbefore: ELBO {before.elbo:.4f}, gap {before.gap:.4f}")
        click.echo(f"after:  ELBO {after.elbo:.4f}, gap {after.gap:.4f}")
        click.echo(f"\nRun in {folder}", err=True)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.option(
    "--latents", type=options.CommaSeparated(int), help="Which to remove, from 0; default: the collapsed ones."
)
@click.option("--collapse", default="relative", show_default=True, help=options.COLLAPSE)
@click.option("--out", type=options.PATH, help="Folder of the copy, new or empty; default: a new one under runs/.")
@options.overwrite
@options.data_folder
@click.option("--num-samples", type=int, default=16, show_default=True, help="Draws of z per point.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@options.device
@options.as_json
def prune(run: str, num_samples: int, seed: int, collapse: str, as_json: bool, **given: Any) -> None:
    """Copy folder RUN without the latents that have collapsed."""
    from vaentropy.expectation import MonteCarlo
    from vaentropy.files import to_json
    from vaentropy.runs import prune_run

    done = prune_run(run, expectation=MonteCarlo(num_samples, seed), collapse=options.collapse_of(collapse), **given)
    if as_json:
        parts = {"before": done.before.to_dict(vectors=False), "after": done.after.to_dict(vectors=False)}
        change = {"change": done.change, "change_error": done.change_error}
        folder = None if done.folder is None else str(done.folder)
        click.echo(to_json({"run": folder, "removed": done.removed, **change, **parts}))
    elif done.folder is None:
        click.echo("no latent has collapsed: nothing to remove")
    else:
        error = "" if done.change_error is None else f" ± {done.change_error:.4f}"
        click.echo(f"removed latents {', '.join(map(str, done.removed))}, {done.after.latent_shape[0]} are left")
        click.echo(f"ELBO {done.before.elbo:.4f} before, {done.after.elbo:.4f} after: {done.change:+.4f}{error}")
        click.echo(f"\nRun in {done.folder}", err=True)


@vaentropy.command("continue")
@click.argument("run", type=options.PATH)
@click.option("--out", type=options.PATH, help="Folder of the new run, new or empty; default: a new one under runs/.")
@options.overwrite
@options.log
@options.report
@options.as_json
@options.changes
def continue_(
    run: str,
    out: str | None,
    overwrite: bool,
    log: tuple[str, ...] | None,
    report: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train the model in folder RUN further, as a new run, with analytic variances.

    Other settings that are not given are those of RUN. A vae0 or vae2 can go on as a vae1.
    """
    from vaentropy.cli.launched import launched
    from vaentropy.runs import continue_run

    chosen = {name: value for name, value in given.items() if value is not None}
    with launched() as speaks:
        done = continue_run(run, out=out, overwrite=overwrite, log=log or (), **chosen)
    if speaks:
        _show(done, as_json, report, given["data_folder"])


def _target(out: str, as_json: bool) -> str | None:
    """The file to write to; None for stdout."""
    from vaentropy.errors import UsageError

    if out == "-" and as_json:
        raise UsageError("--json given with --out -, which writes CSV to stdout; name a file with --out")
    return None if out == "-" else out


def _write_rows(write: Any, run: str, data: str | None, out: str, as_json: bool, given: dict[str, Any]) -> None:
    from vaentropy.progress import counting, progress_bar

    target = _target(out, as_json)
    given |= {"engine": _engine(given)}
    with progress_bar(None, "data points") as report:
        rows = write(run, target, data=data, on_batch=counting(report), **given)
    _wrote(rows, out, as_json)


def _wrote(num_rows: int, out: str, as_json: bool) -> None:
    from vaentropy.files import to_json

    if as_json:
        click.echo(to_json({"out": out, "rows": num_rows}))
    else:
        click.echo(f"{num_rows:,} rows in {out}" if out != "-" else f"{num_rows:,} rows", err=True)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.argument("data", required=False, type=options.PATH)
@options.out_rows
@options.condition
@click.option("--variance", is_flag=True, help="Write posterior variances as well.")
@options.overwrite
@options.data_folder
@options.device
@options.engines_if_asked
@options.as_json
def encode(run: str, data: str | None, out: str, as_json: bool, **given: Any) -> None:
    """Write posterior means of DATA (default: the run's own), one row per data point, by the model in folder RUN."""
    from vaentropy.runs import encode_run

    _write_rows(encode_run, run, data, out, as_json, given)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.argument("data", required=False, type=options.PATH)
@options.out_rows
@options.condition
@options.overwrite
@options.data_folder
@options.device
@options.engines_if_asked
@options.as_json
def reconstruct(run: str, data: str | None, out: str, as_json: bool, **given: Any) -> None:
    """Write reconstructions of DATA (default: the run's own), in their units, by the model in folder RUN."""
    from vaentropy.runs import reconstruct_run

    _write_rows(reconstruct_run, run, data, out, as_json, given)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@click.option("--num-samples", type=int, default=16, show_default=True, help="How many.")
@click.option("--noise", is_flag=True, help="Draw x from p(x|z) instead of taking its mean.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@options.out_file
@options.condition
@options.overwrite
@options.device
@options.as_json
def sample(run: str, num_samples: int, out: str, as_json: bool, **given: Any) -> None:
    """Write draws from the model in folder RUN, in the units of its data."""
    from vaentropy.runs import sample_run

    _wrote(sample_run(run, _target(out, as_json), num_samples, **given), out, as_json)


@vaentropy.command()
@click.argument("run", type=options.PATH)
@options.as_json
def info(run: str, as_json: bool) -> None:
    """Tell what folder RUN holds and how far its training has come."""
    from vaentropy.errors import printable
    from vaentropy.files import to_json
    from vaentropy.runs import describe_run

    about = describe_run(run)
    if as_json:
        click.echo(to_json(about))
        return

    def say(line: str) -> None:
        click.echo(printable(line))  # texts from files that others may have made

    config, manifest = about["config"], about["manifest"]
    chosen = {name: value for name, value in config.items() if value not in (None, [], False)}
    data, last = manifest.get("data", {}), about["last"]
    say(f"{about['run']}: {config['model']} on {config['data']}, {about['status']}")
    say(f"epochs         {about['epochs']}")
    for how, other in about["made_from"].items():
        say(f"{how.removesuffix('_from'):<15}from {other}")
    if data:
        sizes = f"{data['num_train']:,} to train on, {data['num_held_out']:,} held out"
        say(f"data           {data['description']}; {sizes}, shape {tuple(data['data_shape'])}")
    if last:
        say(f"running ELBO   {last['running_elbo']:.4f} (last epoch)")
    say(f"checkpoints    after steps {', '.join(map(str, about['checkpoints'])) or '(none)'}")
    for name in ("vaentropy", "python", "torch", "device", "num_parameters", "written"):
        if name in manifest:
            say(f"{name:<15}{manifest[name]}")
    say("settings       " + ", ".join(f"{name}={value}" for name, value in chosen.items()))


@vaentropy.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete this command; for bash: eval "$(vaentropy completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(vaentropy, {}, "vaentropy", "_VAENTROPY_COMPLETE").source())


# A run's own settings, which there is none of here; and those that are many, or have one value more.
_NOT_FOR_SELECT = ("latent_dim", "model", "patience", "evaluate_every", "checkpoint_every", "keep_checkpoints")
_MODELS = ("linear", *FAMILIES)


@vaentropy.command()
@click.argument("data", required=False, type=options.PATH)
@click.option(
    "--latent-dims",
    type=options.CommaSeparated(int),
    default="1,2,3,4,5,6",
    show_default=True,
    help="Numbers of latents to compare.",
)
@click.option(
    "--model",
    show_default="vae1",
    shell_complete=options.completing(_MODELS),
    help="linear (in closed form, no training; 0 latents are possible), vae0, vae1, vae2 or vae3.",
)
@click.option("--num-seeds", type=int, show_default="2", help="Trainings of each, from --seed on; the best counts.")
@click.option("--num-errors", type=float, default=2.0, show_default=True, help="Errors that make a difference count.")
@click.option("--config", type=options.PATH, help="YAML file with settings; options on the command line override it.")
@options.engines
@options.as_json
@options.settings_but(*_NOT_FOR_SELECT)
def select(
    data: str | None,
    latent_dims: tuple[int, ...],
    model: str | None,
    num_seeds: int | None,
    num_errors: float,
    config: str | None,
    engine: str | None,
    workers: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Tell how many latents DATA support: train some numbers of them, compare on data held out.

    DATA is as for train. No folder is left; train the model with the number of your choice.
    """
    from vaentropy.files import to_json
    from vaentropy.runs import select as select_by_settings

    linear = model == "linear"
    chosen = options.settings_of(config, {"data": data, "model": None if linear else model, **given})
    if linear and engine is None and workers is None:
        place = None
    else:
        place = options.engine_of(engine, workers, device=chosen.device, threads=chosen.threads)
    how = {"num_seeds": num_seeds, "num_errors": num_errors, "engine": place}
    selection = select_by_settings(chosen, latent_dims, linear=linear, **how)
    click.echo(to_json(selection.to_dict()) if as_json else selection)


def _engine(given: dict[str, Any]) -> Any:
    """What `engines_if_asked` means, taken out of what is given; None where it means here."""
    from vaentropy.cli.launched import require_alone

    require_alone()
    engine, workers = given.pop("engine"), given.pop("workers")
    if engine is None and workers is None:
        return None
    return options.engine_of(engine, workers, device=given["device"])
