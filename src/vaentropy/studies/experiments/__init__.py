"""The experiments of the paper (arXiv:2010.14860) and some beyond it, one description each; `STUDIES` by name."""

from collections.abc import Mapping

from vaentropy.studies.experiments import (
    beyond,
    linear_pca,
    manifolds,
    streaming,
    vae1_mnist,
    vae3_ring,
)
from vaentropy.studies.study import Study

__all__ = ["STUDIES"]

MODULES = (
    beyond,
    linear_pca,
    manifolds,
    streaming,
    vae1_mnist,
    vae3_ring,
)
STUDIES: Mapping[str, Study] = {module.STUDY.name: module.STUDY for module in MODULES}
