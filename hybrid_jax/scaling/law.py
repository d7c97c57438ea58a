"""The law itself, L(N, D) = E + A/N^alpha + B/D^beta, and what follows from it (arXiv 2203.15556; 2604.03444, D.2)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Numbers = float | Float64[np.ndarray, "..."]

FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Of the budget C = 6 N D in which the paper states its compute-optimal frontier (Table 19)."""


class Allocation(NamedTuple):
    """How a budget is best spent: parameters, tokens, and the loss (nats per token) that results."""

    num_params: Numbers
    tokens: Numbers
    loss: Numbers


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """Loss in nats per token of a model with N parameters after D tokens.

    Coefficients are numbers, or arrays of one shape: then this is a batch of laws, and what is asked of it broadcasts
    against that shape. N leaves input embeddings out and counts the head (the paper's Eq. 2 and Table 22).

    Attributes:
        E: irreducible loss.
        A: coefficient of parameters, above 0.
        alpha: exponent of parameters.
        B: coefficient of tokens, above 0.
        beta: exponent of tokens.
    """

    E: Numbers
    A: Numbers
    alpha: Numbers
    B: Numbers
    beta: Numbers

    def floor(self, num_params: Numbers) -> Numbers:
        """What N parameters come to with tokens without end."""
        return self.E + self.A / num_params**self.alpha

    def loss(self, num_params: Numbers, tokens: Numbers) -> Numbers:
        """L(N, D)."""
        return self.floor(num_params) + self.B / tokens**self.beta

    def tokens_for_loss(self, num_params: Numbers, loss: Numbers) -> Numbers:
        """D(N) = (B / (L - E - A/N^alpha))^(1/beta): infinite where no number of tokens suffices."""
        gap = np.maximum(loss - self.floor(num_params), 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            return (self.B / gap) ** (1 / self.beta)

    def optimum(self, flops: Numbers) -> Allocation:
        """Parameters and tokens of the lowest loss for C = 6 N D, from alpha A/N^alpha = beta B/D^beta.

        At least one of each: a law in which one of them hardly counts would have none of it.
        """
        log_budget = np.log(flops / FLOPS_PER_PARAMETER_AND_TOKEN)
        balance = np.log(self.alpha * self.A) - np.log(self.beta * self.B)
        log_params = (self.beta * log_budget + balance) / (self.alpha + self.beta)
        num_params = np.exp(np.clip(log_params, 0.0, log_budget))
        tokens = np.exp(log_budget) / num_params
        return Allocation(num_params, tokens, self.loss(num_params, tokens))
