"""How far the interpreted GPU kernels are from the float64 recurrence: the table of docs/kernels.md.

JAX_PLATFORMS=cpu python -m tests.pallas_kernels.accuracy        needs jax 0.11 or newer
"""

import functools

import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule, dispatch
from tests.pallas_kernels import reference
from tests.pallas_kernels.conformance import errors, run
from tests.pallas_kernels.inputs import bfloat16_inputs, make_inputs

LENGTH = 512
SHAPES = ((96, 192), (128, 128))


def repeated(inputs):
    """One key throughout, written with beta near 2 and hardly forgotten."""
    arrays, cotangents = inputs
    changed = {
        "k": np.broadcast_to(arrays["k"][:, :1], arrays["k"].shape),
        "beta": np.full_like(arrays["beta"], 1.98),
        "g": np.full_like(arrays["g"], -0.001),
    }
    return {**arrays, **changed}, cotangents


def main():
    dispatch.gpu_refusal = lambda: None
    op = functools.partial(chunk_gated_delta_rule, implementation="mosaic_gpu")
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        for dims in SHAPES:
            for change in (lambda inputs: inputs, repeated):
                low, rounded = bfloat16_inputs(
                    change(make_inputs(batch=1, length=LENGTH, heads=(1, 1), dims=dims))
                )
                off = errors(run(op, low), reference.float64(*rounded))
                kind = "one key" if change is repeated else "random"
                print(*dims, kind, *(f"{name} {error:.1e}" for name, error in off.items()), flush=True)


if __name__ == "__main__":
    main()
