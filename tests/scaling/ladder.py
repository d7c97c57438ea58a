"""A synthetic ladder: the paper's sizes and horizons, losses from a law that is known, and noise."""

import numpy as np

from hybrid_jax.scaling import LadderPoint, ScalingLaw

SIZES = {"60m": 57, "100m": 102, "190m": 190, "370m": 371, "600m": 548, "760m": 758, "1b": 1279}
HORIZONS = (0.5, 1.0, 2.0, 4.0, 8.0)
KNOWN = ScalingLaw(E=1.65, A=108.83, alpha=0.252, B=83.45, beta=0.213)


def points(law=KNOWN, noise=0.0, architecture="olmo3", sizes=SIZES, horizons=HORIZONS, seed=0):
    rng = np.random.default_rng(seed)
    return [
        point(
            architecture=architecture,
            size=size,
            num_params=millions * 10**6,
            tokens=int(20e6 * horizon * millions),
            horizon=horizon,
            loss=float(
                law.loss(millions * 1e6, 20e6 * horizon * millions) * np.exp(noise * rng.standard_normal())
            ),
        )
        for size, millions in sizes.items()
        for horizon in horizons
    ]


def point(**changes):
    fields = {
        "architecture": "olmo3",
        "size": "60m",
        "num_params": 57_000_000,
        "tokens": 1_140_000_000,
        "flops": 1e18,
        "loss": 3.5,
        "corpus": "dolma3",
        "tokenizer": "dolma2",
        "vocab_size": 100_352,
        "horizon": 1.0,
        "decayed": True,
        "seed": 0,
    }
    return LadderPoint(**(fields | changes))
