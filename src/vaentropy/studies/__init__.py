"""Numerical studies of the theorem: `verify`, and the experiments of the paper and beyond, which `reproduce` runs."""

from vaentropy.studies.verify import Case as Case
from vaentropy.studies.verify import verify as verify
