"""`nearly_equal_parts`: how many are divided, rows of a batch or models, of which only some go together."""

import math

__all__ = ["nearly_equal_parts"]


def nearly_equal_parts(number: int, largest: int) -> list[range]:
    """Numbers below this one in as few parts of at most `largest` as there can be, of nearly equal size."""
    count = math.ceil(number / largest)
    return [range(part * number // count, (part + 1) * number // count) for part in range(count)]
