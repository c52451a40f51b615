"""The command that all verbs are added to."""

import click

from vaentropy import __version__

__all__ = ["vaentropy"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def vaentropy() -> None:
    """Gaussian VAEs whose ELBO is a sum of three entropies: train, evaluate, use, verify."""
