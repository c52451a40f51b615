"""The verbs, each a thin layer over one public function. Nothing here imports torch before a verb runs."""

from typing import Any

import click

from vaentropy import __version__

__all__ = ["vaentropy"]


class Widths(click.ParamType):
    """Whole numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """From text to numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} given, expected whole numbers with commas between them, such as 50,50", param, ctx)


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
data_folder = click.option("--data-folder", help="Folder with the files of the data set; default: $VAENTROPY_DATA.")
device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...; auto takes a GPU if any.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def vaentropy() -> None:
    """Gaussian VAEs whose ELBO is a sum of three entropies: train, evaluate, verify."""


@vaentropy.command()
@click.argument("data", default="digits")
@data_folder
@click.option("--held-out", type=float, help="Fraction held out; default: the data set's own split.")
@click.option("--model", default="vae1", show_default=True, help="vae0, vae1, vae2 or vae3.")
@click.option("--latent-dim", type=int, default=2, show_default=True, help="Number of latents.")
@click.option("--hidden", type=Widths(), default="50,50", show_default=True, help="Widths of the encoder's layers.")
@click.option("--epochs", type=int, default=500, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=int, default=200, show_default=True, help="Points per step.")
@click.option("--learning-rate", type=float, default=5e-3, show_default=True, help="Of Adam.")
@click.option("--schedule", default="one_cycle", show_default=True, help="one_cycle or constant learning rate.")
@click.option("--variances", default="analytic", show_default=True, help="analytic, or learned by gradient.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient; default: none.")
@click.option("--beta", type=float, default=1.0, show_default=True, help="Weight of the KL term.")
@click.option("--num-samples", type=int, default=1, show_default=True, help="Draws of z per point and step.")
@click.option("--evaluation-samples", type=int, default=16, show_default=True, help="Draws of z per point to evaluate.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of split, weights, batches and noise.")
@device
@click.option("--threads", type=int, help="Of the CPU; default: PyTorch's, or 1 for small networks.")
@click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")
@click.option("--out", help="Folder of the run, new or empty; default: a new one under runs/.")
@as_json
def train(out: str | None, as_json: bool, **settings: Any) -> None:
    """Train a VAE on DATA (digits, mnist, fashion-mnist, pca, pca-ring or a .npy file) and print its ledger."""
    from vaentropy.runs import RunConfig, to_json
    from vaentropy.runs import train as train_run

    run = train_run(RunConfig(**settings), out=out)
    evaluation, held_out = run.history.train, run.history.held_out
    assert evaluation is not None
    if as_json:
        result = {"run": str(run.folder), "data": run.description, **evaluation.to_dict(vectors=False)}
        result["held_out"] = None if held_out is None else held_out.to_dict(vectors=False)
        click.echo(to_json({**result, "seconds": run.seconds}))
        return
    click.echo(f"{run.config.model} trained on {run.config.data} ({run.description})\n")
    click.echo(evaluation)
    if held_out is not None:
        click.echo(
            f"held out: ELBO {held_out.elbo:.4f} ± {held_out.stderr.elbo:.4f}, {held_out.num_points:,} data points"
        )
    at_floor = run.history["at_floor"][-1]
    if at_floor:
        click.echo(f"σ² is held at its floor for {at_floor:.1%} of the features: there the theorem does not hold")
    click.echo(f"\nRun in {run.folder}, {run.seconds:.1f} s", err=True)


@vaentropy.command()
@click.argument("run")
@click.option("--data", help="Evaluate this data set or .npy file instead of the run's own data.")
@data_folder
@click.option("--num-samples", type=int, default=16, show_default=True, help="Draws of z per point.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@device
@as_json
def evaluate(
    run: str, data: str | None, data_folder: str | None, num_samples: int, seed: int, device: str, as_json: bool
) -> None:
    """Print the ledgers of the model in folder RUN, on the data it was trained and held out on or on others."""
    from vaentropy.expectation import MonteCarlo
    from vaentropy.runs import evaluate_run, to_json

    expectation = MonteCarlo(num_samples, seed)
    parts = evaluate_run(run, data=data, data_folder=data_folder, expectation=expectation, device=device)
    if as_json:
        click.echo(to_json({"run": run, **{name: part.to_dict() for name, part in parts.items()}}))
    else:
        click.echo("\n\n".join(f"[{name}]\n{part}" for name, part in parts.items()))


@vaentropy.command()
@as_json
def verify(as_json: bool) -> int:
    """Check the theorem to the last digits on models small enough to reach a stationary point; exit 1 if one fails."""
    from vaentropy.progress import progress_bar
    from vaentropy.runs import to_json
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
