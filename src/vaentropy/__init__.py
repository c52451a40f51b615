"""Gaussian variational autoencoders whose ELBO is a sum of three entropies."""

__version__ = "0.1.0"
