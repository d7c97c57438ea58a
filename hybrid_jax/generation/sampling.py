"""How the next token is chosen from logits: greedy, or temperature, top-k and top-p, on device in float32."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key

from hybrid_jax.errors import InputError

_INFINITY_BITS = 0x7F80_0000


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What to sample with; None switches a part off, and only that (not the values) makes a new program.

    Attributes:
        temperature: divides the logits; None chooses the likeliest token, and the rest has no say.
        top_k: only this many of the likeliest tokens, and those as likely as the last of them, remain.
        top_p: of what top_k leaves, the fewest likeliest tokens with at least this probability remain, and those as
            likely as the last of them.
    """

    temperature: Float[Array, ""] | None = None
    top_k: Int[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None


def make_sampling(temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
    """A Sampling from a user's settings; temperature 0 is greedy.

    Raises:
        InputError: negative temperature, ``top_k`` below 1, ``top_p`` outside (0, 1].
    """
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: found {temperature}, expected 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k: found {top_k}, expected at least 1, or None for all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p: found {top_p}, expected 0 < top_p <= 1, or None for all tokens")
    if temperature == 0:
        return Sampling()
    return Sampling(
        temperature=jnp.float32(temperature),
        top_k=None if top_k is None else jnp.int32(min(top_k, 2**31 - 1)),
        top_p=None if top_p is None or top_p == 1 else jnp.float32(top_p),
    )


def row_keys(seed: Integer[Array, ""], num_rows: int) -> Key[Array, " B"]:
    """A key for each row that depends on ``seed`` and the row's number alone, not on how many rows there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num_rows))


def sample(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], step: Int[Array, ""], sampling: Sampling
) -> Int[Array, " B"]:
    """One token per row: as in transformers, temperature comes first, then top-k, then top-p.

    Args:
        logits: float32 scores.
        keys: one per row (``row_keys``).
        step: number of the token in its row; each draws anew.
        sampling: settings.
    """
    if sampling.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # Distances below the best score stay finite for any temperature that float32 can hold.
    temperature = jnp.maximum(sampling.temperature, jnp.finfo(jnp.float32).tiny)
    distance = (jnp.max(logits, axis=-1, keepdims=True) - logits) / temperature
    if sampling.top_k is not None:
        ones = jnp.ones_like(distance)
        distance = _nearest(distance, ones, sampling.top_k.astype(jnp.float32))
    if sampling.top_p is not None:
        distance = _nearest(distance, jax.nn.softmax(-distance), sampling.top_p)
    draws = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(jax.random.categorical)(draws, -distance).astype(jnp.int32)


def _nearest(
    distance: Float[Array, "B V"], mass: Float[Array, "B V"], target: Float[Array, ""]
) -> Float[Array, "B V"]:
    """``distance`` with inf for all but the nearest entries that together have at least ``target`` of ``mass``.

    The bits of non-negative floats have the floats' order, so bisecting them finds the cut exactly; XLA's sort of a
    row takes some 30 times as long on a CPU (4096 and 100352 entries).
    """

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        within = distance <= jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(within, mass, 0.0), axis=-1, keepdims=True) >= target
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low = jnp.zeros((distance.shape[0], 1), jnp.int32)
    _, cut = jax.lax.fori_loop(0, 31, halve, (low, low + _INFINITY_BITS))
    return jnp.where(distance <= jax.lax.bitcast_convert_type(cut, jnp.float32), distance, jnp.inf)
