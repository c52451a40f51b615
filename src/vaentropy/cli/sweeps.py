"""The verb `sweep`; as all verbs it imports no torch before it runs."""

from typing import Any

import click

from vaentropy.cli import options
from vaentropy.cli.group import vaentropy

# So many of the best runs are offered to look at.
BEST = 3


@vaentropy.command()
@click.argument("data", required=False, type=options.PATH)
@click.option(
    "--vary",
    metavar="NAME=VALUE,VALUE,...",
    multiple=True,
    help="A setting and its values, as in a settings file: latent_dim=2,5 hidden=[50],[100,50] patience=null,5. May be "
    "given several times.",
)
@click.option("--seeds", metavar="N", type=int, help="Runs of each combination, from --seed on; default: 1.")
@click.option("--out", type=options.PATH, help="Folder of all runs; default: sweeps/DATA-MODEL.")
@options.overwrite
@click.option("--config", type=options.PATH, help="YAML file with settings; options on the command line override it.")
@options.engines
@options.as_json
@options.settings
def sweep(
    data: str | None,
    vary: tuple[str, ...],
    seeds: int | None,
    out: str | None,
    overwrite: bool,
    config: str | None,
    engine: str | None,
    workers: int | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Train every combination of some settings, and each of them from several seeds.

    DATA is as for train. Each run has a folder of its own below --out, which all verbs take; --out/sweep.csv is a table
    of them. The same command again keeps what is finished and goes on with the rest, after Ctrl-C for instance. Exit
    with 1 if some runs failed.
    """
    import shlex

    from vaentropy.errors import UsageError, printable
    from vaentropy.files import to_json
    from vaentropy.runs import sweep as sweep_runs

    values = _values(vary)
    if not values and seeds is None:
        raise UsageError("nothing to vary given, expected --vary NAME=VALUE,VALUE, --seeds N, or both")
    both = next((name for name in values if {"data": data, **given}.get(name) is not None), None)
    if both is not None:
        raise UsageError(f"{both} given and varied, expected one of the two; leave one of them out")
    settings = options.settings_of(config, {"data": data, **given})
    place = options.engine_of(engine, workers, device=settings.device, threads=settings.threads)
    num_seeds = 1 if seeds is None else seeds
    done = sweep_runs(settings, values, num_seeds=num_seeds, out=out, overwrite=overwrite, engine=place)
    for name, reason in done.failed.items():
        click.echo(f"vaentropy: {name} failed: {printable(reason)}", err=True)
    click.echo(to_json(done.to_dict()) if as_json else done)
    kept = f" ({len(done.kept)} were finished before)" if done.kept else ""
    count = f"{len(done.rows)} {'run' if len(done.rows) == 1 else 'runs'}"
    others = f"; {len(done.others)} more there, not asked for now" if done.others else ""
    click.echo(f"\n{count}{kept} in {done.folder}, table in {done.folder / 'sweep.csv'}{others}", err=True)
    if best := done.best[:BEST]:
        click.echo(f"Look at the best: vaentropy report {' '.join(shlex.quote(str(run)) for run in best)}", err=True)
    return int(bool(done.failed))


def _values(vary: tuple[str, ...]) -> dict[str, list[Any]]:
    """Values by the names of settings."""
    from vaentropy.errors import UsageError, shown
    from vaentropy.files import yaml_list

    values: dict[str, list[Any]] = {}
    for text in vary:
        option, equals, listed = text.partition("=")
        name = option.strip().replace("-", "_")
        if not equals:
            raise UsageError(f"--vary {shown(text)} given, expected NAME=VALUE,VALUE,... such as latent_dim=2,5")
        if name in values:
            raise UsageError(f"{name} given to vary twice, expected all its values at once: {name}=VALUE,VALUE,...")
        values[name] = yaml_list(listed, f"--vary {text}")
    return values
