"""How many times fewer tokens one architecture needs than another to reach the same loss, with intervals."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from hybrid_jax.errors import InputError
from hybrid_jax.scaling.law import Numbers, ScalingLaw

PERCENTILES = (2.5, 97.5)


def token_savings(reference: ScalingLaw, other: ScalingLaw, num_params: Numbers, loss: Numbers) -> Numbers:
    """Tokens of ``reference`` over those of ``other`` at the same N (arXiv 2604.03444, Table 20).

    Infinite where only ``other`` reaches the loss, 0 where only ``reference`` does, NaN where neither does.
    """
    with np.errstate(invalid="ignore"):
        return reference.tokens_for_loss(num_params, loss) / other.tokens_for_loss(num_params, loss)


def bootstrap_interval(samples: Float64[np.ndarray, "samples *dims"]) -> Float64[np.ndarray, "2 *dims"]:
    """The 95% percentile interval over the first dimension; samples that are NaN do not count.

    Percentiles are samples themselves, since between a number and infinity there is nothing. NaN where all are.
    """
    ordered = np.sort(samples, axis=0)  # NaN last
    counted = (~np.isnan(ordered)).sum(axis=0)
    ranks = [np.clip(np.ceil(counted * each / 100).astype(int) - 1, 0, None) for each in PERCENTILES]
    return np.stack([np.take_along_axis(ordered, rank[None], axis=0)[0] for rank in ranks])


def check_target(laws: Mapping[str, ScalingLaw], loss: float) -> None:
    """Raise InputError where a law never comes down to ``loss``, whatever the model's size."""
    for name, law in laws.items():
        if not loss > law.E:
            raise InputError(
                f"target_loss: found {loss:g}, expected more than the irreducible loss of {name}, E = {law.E:.4g}"
            )
