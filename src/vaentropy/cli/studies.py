"""The verbs of studies, `verify` and `reproduce`; as those of runs, none imports torch before it runs."""

from typing import Any

import click

from vaentropy.cli import options
from vaentropy.cli.group import vaentropy


@vaentropy.command()
@options.as_json
def verify(as_json: bool) -> int:
    """Check the theorem to the last digits on models small enough to reach a stationary point; exit 1 if one fails."""
    from vaentropy.files import to_json
    from vaentropy.progress import progress_bar
    from vaentropy.studies import Case
    from vaentropy.studies import verify as verify_cases
    from vaentropy.studies.verify import CASES

    def line(case: Case) -> str:
        return (
            f"{case.model:<30}{case.elbo:>12.6f}{case.entropy_sum:>13.6f}{case.relative_gap:>10.1e}"
            f"{case.gradient_norm:>10.1e}{case.hessian_min:>10.1e}{case.active_latents:>4}  "
            f"{'yes' if case.holds else 'NO':<6}{case.note}"
        )

    with progress_bar(len(CASES), "cases") as report:
        cases = verify_cases(on_case=lambda case: report(case.model))
    if as_json:
        click.echo(to_json({"cases": [case.to_dict() for case in cases], "holds": all(case.holds for case in cases)}))
    else:
        click.echo(
            f"{'model':<30}{'ELBO':>12}{'entropy sum':>13}{'rel. gap':>10}{'gradient':>10}{'curvature':>10}"
            f"{'act':>4}  holds"
        )
        for case in cases:
            click.echo(line(case))
            if case.own_entropy_sum is not None and case.own_relative_gap is not None:
                click.echo(f"{'  by its own formula':<42}{case.own_entropy_sum:>13.6f}{case.own_relative_gap:>10.1e}")
    return 0 if all(case.holds for case in cases) else 1


SCALES = ("quick", "paper")
# As in vaentropy.studies.experiments, which imports torch.
STUDIES = (
    "linear-pca",
    "vae1-mnist",
    "vae3-ring",
    "manifolds",
    "constraint",
    "variables",
    "estimate-noise",
    "collapse",
    "collapse-rgb",
    "susy",
    "streaming",
    "beyond",
)


@vaentropy.command()
@click.argument("names", nargs=-1, metavar="[NAME ...|all]", shell_complete=options.completing((*STUDIES, "all")))
@click.option(
    "--scale",
    default="quick",
    show_default=True,
    shell_complete=options.completing(SCALES),
    help="quick: minutes for all of them; paper: with the paper's data and networks.",
)
@click.option(
    "--exact-settings", is_flag=True, help="With --scale paper: the paper's optimiser, samples and epochs too."
)
@click.option("--replicates", type=int, help="Trainings of each kind; default: the study's own number.")
@click.option("--data", type=options.PATH, help="The real thing, for the study of a set that is not at hand: susy, ...")
@click.option("--data-folder", type=options.PATH, help="Where MNIST and its like are; default: $VAENTROPY_DATA.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first replicate.")
@options.device
@options.engines
@click.option("--out", type=options.PATH, help="Folder of the results; default: reproduced/quick, or as the scale is.")
@click.option(
    "--overwrite", is_flag=True, help="Replace studies that --out holds; those of the same plan are kept else."
)
@options.as_json
def reproduce(
    names: tuple[str, ...],
    engine: str | None,
    workers: int | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Run experiments of the paper and beyond: a table, a figure and a sentence for each, and an index of them.

    NAME is one of linear-pca, vae1-mnist, vae3-ring, manifolds, constraint, variables, estimate-noise, collapse,
    collapse-rgb, susy, streaming, beyond; default: all. Studies that --out holds, made with the same options, are kept,
    so that an interrupted command can be repeated. Exit with 1 if some of several studies failed.
    """
    from vaentropy.errors import VaentropyError, printable
    from vaentropy.files import to_json
    from vaentropy.studies.record import Record
    from vaentropy.studies.runner import reproduce as run_studies
    from vaentropy.studies.study import Plan

    def say(record: Record) -> None:
        if not as_json:
            click.echo(f"{record.name}: {printable(record.finding)}")

    place = options.engine_of(engine, workers, device=given["device"])
    done = run_studies(names or ("all",), Plan(**given), out=out, overwrite=overwrite, engine=place, on_study=say)
    for name, reason in done.failed.items():
        click.echo(f"vaentropy: {name} failed: {printable(reason)}", err=True)
    if not done.records:
        failed = len(done.failed)
        raise VaentropyError("the study failed" if failed == 1 else f"none of {failed} studies could be run")
    if as_json:
        studies = {name: vars(record) for name, record in done.records.items()}
        click.echo(to_json({"out": str(done.folder), "kept": done.kept, "failed": done.failed, "studies": studies}))
    else:
        kept = f" ({len(done.kept)} were there before)" if done.kept else ""
        count = f"{len(done.records)} {'study' if len(done.records) == 1 else 'studies'}"
        click.echo(f"\n{count}{kept} in {done.folder}; open {done.folder}/index.html", err=True)
    return int(bool(done.failed))
