"""Figures of trainings, evaluations and models: functions from results to a matplotlib `Figure`."""

# First: it says in one line that matplotlib is missing.
from vaentropy.figures import style as style

# isort: split

from vaentropy.figures.data import plot_points as plot_points
from vaentropy.figures.data import plot_reconstructions as plot_reconstructions
from vaentropy.figures.data import plot_samples as plot_samples
from vaentropy.figures.data import plot_traversals as plot_traversals
from vaentropy.figures.latents import plot_latents as plot_latents
from vaentropy.figures.residuals import plot_residuals as plot_residuals
from vaentropy.figures.scales import plot_posteriors as plot_posteriors
from vaentropy.figures.scales import plot_scales as plot_scales
from vaentropy.figures.terms import plot_estimates as plot_estimates
from vaentropy.figures.terms import plot_terms as plot_terms
from vaentropy.figures.training import plot_latent_entropies as plot_latent_entropies
from vaentropy.figures.training import plot_training as plot_training
from vaentropy.figures.view import View as View
from vaentropy.figures.view import look as look
