"""Synthetic sets: those of the paper, each with the truth about it where that has a closed form.

`SETS` holds them by name, with the sizes they have there; the functions draw any number of points.

Source: Damm et al., "The ELBO of variational autoencoders converges to a sum of three entropies", AISTATS 2023,
arXiv:2010.14860. Unless a docstring says "our choice", definitions and constants are those of the authors' code,
github.com/Learning-with-Entropies/ELBO-Entropies-AISTATS23. It scales all but PCA, PCA-ring and streaming to [0, 1] per
feature before it trains, and densities change with the scale; nothing is rescaled here.

What all functions share: `noise` is a standard deviation (not a variance) per feature, finite and >= 0; `seed` fixes
all draws, and the global generator is neither read nor moved; points are (num_points, D) in float64. Sizes below 1 and
a noise that is negative or not finite raise UsageError.
"""

from vaentropy.data.synthetic.gaussian import (
    GaussianMixture,
    LinearGaussian,
    eight_gauss,
    gauss_1d,
    more_of_pca_ring,
    pca,
    pca_log_likelihood,
    pca_ring,
    streaming,
)
from vaentropy.data.synthetic.manifolds import circle, cosine, eight, line, manifold, spiral_3d, swiss_roll
from vaentropy.data.synthetic.sets import SETS, Drawn, SyntheticSet

__all__ = [
    "SETS",
    "Drawn",
    "GaussianMixture",
    "LinearGaussian",
    "SyntheticSet",
    "circle",
    "cosine",
    "eight",
    "eight_gauss",
    "gauss_1d",
    "line",
    "manifold",
    "more_of_pca_ring",
    "pca",
    "pca_log_likelihood",
    "pca_ring",
    "spiral_3d",
    "streaming",
    "swiss_roll",
]
