"""Why more expressive models might scale better: the quantization model with tasks a model cannot express.

Michaud et al. 2023 (arXiv 2303.13506) take language for many discrete tasks ("quanta", skills) whose frequencies fall
by a power law, and learning for acquiring them one by one, the frequent ones first; a smooth law results. The paper
(arXiv 2604.03444, Section 4.2 and Appendix E) adds that a share of tasks is inexpressible by an architecture: these
bring less when learned, or cost more parameters and tokens, or both. Here that is simulated task by task.

What is assumed, not shown: every token needs exactly one task; expressible or not is drawn independently of a task's
frequency; a task costs the same wherever it ranks; the learner is told the ranking and never forgets; a task is learned
whole, the moment its expected occurrences suffice. Nothing of this is measured on language models.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.special import zeta

from hybrid_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """One architecture in a world of tasks; the paper's symbols in brackets.

    Attributes:
        exponent: of the tasks' frequencies, p_k proportional to k^-(exponent + 1) [alpha].
        inexpressible: the share of tasks that the architecture cannot express [epsilon].
        unlearned_loss: nats on a token whose task is not learned [L_0].
        gain: how many nats less once it is learned, if expressible [Delta].
        inexpressible_gain: the same, if inexpressible [Delta'].
        params: that an expressible task takes [C].
        inexpressible_params: that an inexpressible one takes [C'].
        tokens: with an expressible task in them, needed to learn it [T].
        inexpressible_tokens: the same, if inexpressible [T'].
        num_tasks: simulated one by one; those beyond are so rare that no budget reaches them.
        seed: of which tasks are inexpressible. The tasks of a smaller share are among those of a larger one.
    """

    exponent: float = 0.25
    inexpressible: float = 0.0
    unlearned_loss: float = 8.0
    gain: float = 7.0
    inexpressible_gain: float = 7.0
    params: float = 1.0
    inexpressible_params: float = 1.0
    tokens: float = 1.0
    inexpressible_tokens: float = 1.0
    num_tasks: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.inexpressible <= 1:
            raise InputError(f"inexpressible: found {self.inexpressible}, expected a share between 0 and 1")
        if not 0 <= self.inexpressible_gain <= self.gain < self.unlearned_loss:
            raise InputError(
                f"inexpressible_gain, gain, unlearned_loss: found {self.inexpressible_gain}, {self.gain}, "
                f"{self.unlearned_loss}, expected them in this order, the first at least 0"
            )
        for name in ("exponent", "params", "tokens", "num_tasks"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: found {getattr(self, name)}, expected more than 0")
        for name in ("params", "tokens"):
            low, found = getattr(self, name), getattr(self, f"inexpressible_{name}")
            if found < low:
                raise InputError(f"inexpressible_{name}: found {found}, expected at least {name}, {low}")


class PowerLaws(NamedTuple):
    """Theorem 4: L(N) = irreducible + param_coefficient N^-param_exponent, and so with tokens."""

    irreducible: float
    param_coefficient: float
    param_exponent: float
    token_coefficient: float
    token_exponent: float


class Language:
    """One draw of which tasks are inexpressible, and what models of any size and training then come to."""

    def __init__(self, config: QuantizationConfig) -> None:
        self._config = config
        ranks = np.arange(1, config.num_tasks + 1, dtype=np.float64)
        self._frequencies = ranks ** -(config.exponent + 1) / zeta(config.exponent + 1)
        drawn = np.random.default_rng(config.seed).random(config.num_tasks) < config.inexpressible
        self._costs = np.where(drawn, config.inexpressible_params, config.params)
        self._needed = np.where(drawn, config.inexpressible_tokens, config.tokens)
        self._gains = np.where(drawn, config.inexpressible_gain, config.gain) * self._frequencies

    @property
    def irreducible(self) -> float:
        """Loss with all tasks learned; those not simulated bring what they do on average."""
        config = self._config
        beyond = (1 - self._frequencies.sum()) * (config.unlearned_loss - predict(config).irreducible)
        return float(config.unlearned_loss - self._gains.sum() - beyond)

    def loss(
        self, num_params: Float64[np.ndarray, "budgets"], tokens: float = np.inf
    ) -> Float64[np.ndarray, "budgets"]:
        """Loss of models of each of ``num_params`` after ``tokens``; infinite is as many as tasks take.

        Tasks that occur often enough in so many tokens are learned in the order of their frequency until parameters
        run out (Definitions 3 and 4).

        Raises:
            InputError: budgets that would learn tasks beyond those simulated.
        """
        learnable = tokens * self._frequencies >= self._needed
        num_learned = np.searchsorted(np.cumsum(self._costs[learnable]), num_params, side="right")
        if learnable[-1] and num_learned.max(initial=0) >= learnable.sum():
            raise InputError(
                f"num_tasks: found {self._config.num_tasks}, too few for {num_params.max():g} parameters and "
                f"{tokens:g} tokens, which learn the last of them; expected more tasks or smaller budgets"
            )
        gained = np.concatenate([[0.0], np.cumsum(self._gains[learnable])])
        return self._config.unlearned_loss - gained[num_learned]


def predict(config: QuantizationConfig) -> PowerLaws:
    """The power laws that Theorem 4 of the paper derives for this configuration."""
    alpha, share = config.exponent, config.inexpressible
    irreducible = config.unlearned_loss - (1 - share) * config.gain - share * config.inexpressible_gain
    cost = config.params + share * (config.inexpressible_params - config.params)
    token_exponent = alpha / (alpha + 1)
    by_tokens = (1 - share) * config.gain * config.tokens**token_exponent
    by_tokens += share * config.inexpressible_gain * config.inexpressible_tokens**token_exponent
    return PowerLaws(
        irreducible=irreducible,
        param_coefficient=(config.unlearned_loss - irreducible) * cost**alpha / (alpha * zeta(alpha + 1)),
        param_exponent=alpha,
        token_coefficient=by_tokens / (alpha * zeta(alpha + 1) ** (1 / (alpha + 1))),
        token_exponent=token_exponent,
    )
