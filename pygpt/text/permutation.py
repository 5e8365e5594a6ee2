"""A pseudo-random order that is computed, not stored, and is the same in every version of every library.

An epoch over billions of windows needs no list of them, and an order that is read from the middle needs no replay.
NumPy's and PyTorch's generators give no promise of the same stream in another version; a resumed run needs one.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS = 8


def permuted(index: npt.NDArray[np.integer[Any]], size: int, *key: int) -> npt.NDArray[np.int64]:
    """Give the elements at places ``index`` of a pseudo-random permutation of 0 to ``size`` - 1.

    A Feistel network on a grid of rows × columns ≥ size cells, nearly square: with cell = row · columns + column,
    rounds add to the row a hash of the column, and to the column a hash of the row, each modulo its range. Each round
    can be undone, so the whole permutes the cells; a cell from ``size`` on is mapped again until it falls inside.

    Args:
        index: any shape, values 0 to ``size`` - 1.
        size: at least 1.
        key: integers (a seed, an epoch); each key has its own order.

    Returns: int64, the shape of ``index``.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, the generalised Feistel cipher with cycle
        walking.
    """
    columns = max(1, int(np.ceil(np.sqrt(size))))
    rows = -(-size // columns)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    cell = np.array(index, np.uint64)
    outside = np.ones(cell.shape, np.bool_)
    while outside.any():
        row, column = np.divmod(cell[outside], np.uint64(columns))
        for step in range(0, _ROUNDS, 2):
            row = (row + _mixed(column ^ keys[step]) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _mixed(row ^ keys[step + 1]) % np.uint64(columns)) % np.uint64(columns)
        cell[outside] = row * np.uint64(columns) + column
        outside = cell >= size
    return cell.astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood, 2014): every input bit changes about half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
