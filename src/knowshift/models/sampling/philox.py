"""Random numbers that belong to a draw, not to a moment: the same whatever is computed before, beside or after.

Every draw (seed, fact, prompt, number) has its own stream, and its n-th token uses the stream's n-th number. So the
text of a draw does not depend on batch size, order, number of workers, or on which other draws are made. The
generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written here
over numpy arrays because one call must serve thousands of streams.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def stream_key(seed: int, name: str) -> int:
    """A 64-bit Philox key for everything drawn under ``seed`` for the thing called ``name`` (a fact's prompt)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=8).digest(), "little")


def philox(keys_N: NDArray[np.uint64], counters_NC: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds of Philox-4x32: 64-bit keys [N], four 32-bit counter words [N, 4] -> four 32-bit words [N, 4]."""
    c0, c1, c2, c3 = (counters_NC[:, i].copy() for i in range(4))
    k0, k1 = keys_N & _LOW, keys_N >> _HALF
    for turn in range(10):
        if turn:
            k0, k1 = (k0 + np.uint64(_W0)) & _LOW, (k1 + np.uint64(_W1)) & _LOW
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(
    keys_N: NDArray[np.uint64],
    draws_N: NDArray[np.int64],
    steps_N: NDArray[np.int64],
    what_N: NDArray[np.int64] | int = 0,
) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (key, draw number, token of that draw, what it decides)."""
    counters = np.zeros((len(keys_N), 4), dtype=np.uint64)
    counters[:, 0] = draws_N
    counters[:, 1] = steps_N
    counters[:, 2] = what_N
    words = philox(keys_N, counters)
    high, low = words[:, 0] >> np.uint64(5), words[:, 1] >> np.uint64(6)
    result: NDArray[np.float64] = (high * float(1 << 26) + low) / float(1 << 53)
    return result
