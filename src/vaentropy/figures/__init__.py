"""Figures of trainings, evaluations and models: functions from results to a matplotlib `Figure`."""

from vaentropy.figures.terms import plot_estimates as plot_estimates
from vaentropy.figures.terms import plot_terms as plot_terms
from vaentropy.figures.training import plot_latent_entropies as plot_latent_entropies
from vaentropy.figures.training import plot_training as plot_training
