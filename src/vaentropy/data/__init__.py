"""Data sets: a catalogue by name, files, data in memory, and synthetic sets whose truth is known; batches of them."""

from vaentropy.data.batches import Batches
from vaentropy.data.catalogue import names
from vaentropy.data.coding import Coding, one_hot
from vaentropy.data.dataset import Dataset, split
from vaentropy.data.formats.idx import read_idx
from vaentropy.data.loading import load
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Rows, Source
from vaentropy.data.synthetic import LinearGaussian, pca, pca_log_likelihood, pca_ring

__all__ = [
    "Batches",
    "Coding",
    "Dataset",
    "LinearGaussian",
    "Rows",
    "Scaling",
    "Source",
    "load",
    "names",
    "one_hot",
    "pca",
    "pca_log_likelihood",
    "pca_ring",
    "read_idx",
    "split",
]
