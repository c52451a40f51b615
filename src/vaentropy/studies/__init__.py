"""Numerical studies of the theorem, one file each."""

from vaentropy.studies.verify import Case as Case
from vaentropy.studies.verify import verify as verify
