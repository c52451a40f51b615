"""Array types with shapes.

`Float[Tensor, "B D"]` documents a shape and is checked in the tests, where jaxtyping and beartype are installed.
Without jaxtyping the same annotation means just `Tensor`, so that the core needs neither.
"""

from typing import TYPE_CHECKING

from torch import Tensor

__all__ = ["Bool", "Float", "Num", "Tensor"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Num
else:
    try:
        from jaxtyping import Bool, Float, Num
    except ImportError:

        class Float:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Num = Float
