"""Medians of wall-clock time over inputs in turn, and the times that the hardware allows."""

import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from scripts.gdn_bench.settings import Arrays

# An H200 as measured: bfloat16 matrix products, and memory read and written.
FLOPS, BANDWIDTH = 790e12, 4.3e12
NUM_INPUTS = 3
_WARM_UP, _FEWEST, _SECONDS = 2, 3, 2.0


class Timing(NamedTuple):
    """Of one call: median milliseconds, and the most bytes that it needs, its inputs among them."""

    milliseconds: float
    peak_bytes: int


class Clock:
    """Takes the time.

    Args:
        rounds: samples, fewer (three at least) once they have taken two seconds.
    """

    def __init__(self, rounds: int):
        self._rounds = rounds

    def median(self, work: Callable[[int], Any], wait: Callable[[Any], Any]) -> float:
        """Milliseconds of ``work``, which takes the number of its inputs; ``wait`` for what the last call returned.

        A sample is a call with each of the inputs, so that starting one hides behind the one before.
        """
        samples: list[float] = []
        for sample in count(-_WARM_UP):
            began = time.perf_counter()
            for i in range(NUM_INPUTS):
                last = work(i)
            wait(last)
            if sample >= 0:
                samples.append(time.perf_counter() - began)
            enough = len(samples) >= _FEWEST and sum(samples) >= _SECONDS
            if len(samples) >= self._rounds or enough:
                break
        return 1e3 * statistics.median(samples) / NUM_INPUTS


def floors(num_tokens: int, key_dim: int, value_dim: int, num_heads: int) -> dict[str, float]:
    """Milliseconds forward, and with backward: products at full rate, or inputs and outputs once through memory."""
    tokens = num_tokens * num_heads
    # Per token, with chunks of 64: three products with the state, and four among tokens; backward has thrice as many.
    products = 2 * (3 * key_dim * value_dim + 64 * (2 * key_dim + 2 * value_dim)) * tokens / FLOPS
    forward = max(products, tokens * (4 * key_dim + 4 * value_dim + 8) / BANDWIDTH)
    backward = max(3 * products, tokens * (8 * key_dim + 6 * value_dim + 16) / BANDWIDTH)
    return {"forward": 1e3 * forward, "with backward": 1e3 * (forward + backward)}


def num_bytes(arrays: Arrays) -> int:
    """Bytes of all the arrays."""
    return sum(x.size * np.dtype(x.dtype).itemsize for x in arrays.values())
