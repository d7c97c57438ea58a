"""What printed digits allow: every number that rounds to them, and whatever follows from such numbers."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from hybrid_jax.scaling.law import Numbers, ScalingLaw


@dataclass(frozen=True)
class Printed:
    """A number as it stands in print: "1.60" is anything from 1.595 to 1.605."""

    digits: str

    @property
    def value(self) -> float:
        return float(self.digits)

    @property
    def half_unit(self) -> float:
        """Half a unit of the last digit."""
        exponent = Decimal(self.digits).as_tuple().exponent
        return float(Decimal("0.5").scaleb(int(exponent)))

    def overlaps(self, low: float, high: float) -> bool:
        """Whether some number between ``low`` and ``high`` is printed like this."""
        return low <= self.value + self.half_unit and high >= self.value - self.half_unit


@dataclass(frozen=True)
class RoundedLaw:
    """A law of which rounded coefficients are known."""

    E: Printed
    A: Printed
    alpha: Printed
    B: Printed
    beta: Printed

    @property
    def coefficients(self) -> tuple[Printed, ...]:
        return (self.E, self.A, self.alpha, self.B, self.beta)

    @property
    def law(self) -> ScalingLaw:
        """With the digits as printed."""
        return self.moved(np.zeros(5))

    @cached_property
    def corners(self) -> ScalingLaw:
        """The 32 laws with each coefficient half a unit up or down."""
        return self.moved(np.array(list(itertools.product((-1.0, 1.0), repeat=5))).T)

    def moved(self, half_units: Float64[np.ndarray, "5 *laws"]) -> ScalingLaw:
        """With each coefficient moved from its printed value by so many half units."""
        e, a, alpha, b, beta = (
            each.value + move * each.half_unit
            for each, move in zip(self.coefficients, half_units, strict=True)
        )
        return ScalingLaw(E=e, A=a, alpha=alpha, B=b, beta=beta)

    def interval(self, quantity: Callable[[ScalingLaw], Numbers]) -> tuple[float, float]:
        """Between which values the rounding leaves a quantity that is monotone in each coefficient.

        Those here are: loss and tokens for a loss grow with E, A and B and fall with the exponents (N and D being
        large); so does the least loss of a budget, a minimum of such; N* grows with A and beta, falls with B and
        alpha, and D* does the reverse. The extremes of what is monotone lie in corners.
        """
        values = np.asarray(quantity(self.corners))
        return float(values.min()), float(values.max())
