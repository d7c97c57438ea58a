"""Arrays in host memory, made so that JAX can take them over and copied so that the cache is used."""

import math

import numpy as np

# JAX on CPU takes over a numpy array without a copy if it starts at a multiple of this many bytes.
_ALIGNMENT = 64
_BLOCK = 64


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that ``jax.device_put`` need not copy on CPU."""
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def copy_into(destination: np.ndarray, source: np.ndarray) -> None:
    """``destination[...] = source`` with a cast where dtypes differ; fast also where ``source`` is transposed.

    Column by column a large transposed copy misses the cache at every element: five times slower, measured.
    """
    if source.ndim != 2 or source.flags.c_contiguous:
        destination[...] = source
        return
    for start in range(0, source.shape[1], _BLOCK):
        destination[:, start : start + _BLOCK] = source[:, start : start + _BLOCK]
