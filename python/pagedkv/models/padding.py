"""How many rows a matrix product is given.

torch's products on a CPU take other code paths for a few row counts: with AVX2 a float32 row has other last bits among 1
to 3, 5 to 7 and 9 to 11 rows, a bfloat16 row alone. Multiples of four avoid them all, where a last vector of numbers is not full, multiples of eight. A model of which no product is
torch's needs no padding; whether one is such is tried, see `pagedkv.models.rows.find_row_multiple`.
"""

from __future__ import annotations

ROW_MULTIPLE = 4


def padded_rows(num_rows: int, multiple: int = ROW_MULTIPLE) -> int:
    """``num_rows`` rounded up to a count at which a row's result does not depend on the count."""
    return -(-num_rows // multiple) * multiple
