"""The op's public face: checks, defaults, normalisation and documents; then one of the implementations."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer

from pallas_kernels.gated_delta_rule.chunked import CHUNK_SIZES
from pallas_kernels.gated_delta_rule.dispatch import choose_chunked, choose_recurrent
from pallas_kernels.gated_delta_rule.documents import separate_documents
from pallas_kernels.gated_delta_rule.layout import compute_dtype

_L2_NORM_EPS = 1e-6


def chunk_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T N V"],
    g: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    scale: float | None = None,
    initial_state: Float[Array, "B N K V"] | None = None,
    segment_ids: Integer[Array, "B T"] | None = None,
    use_qk_l2norm: bool = False,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N K V"]]:
    """Gated delta rule over whole sequences, with matrix products over chunks of tokens (arXiv 2412.06464).

    Per value head, with state S [K, V]: S <- exp(g) S; u = beta (v - S^T k); S <- S + k u^T; o = scale S^T q.

    Args:
        q: Queries of H key heads. Value head n uses key head n // (N // H).
        k: Keys. Their length must keep beta |k|^2 <= 2, as it does for unit keys, or the rule itself diverges.
        v: Values of N value heads, N a multiple of H.
        g: Log decay, <= 0; -inf forgets the state. Computed in float32.
        beta: Write strength, in [0, 2] for unit keys. Computed in float32.
        scale: Factor on the queries; default K^-1/2.
        initial_state: State before the first token; default zeros. Belongs to the row's first document.
        segment_ids: Document of each token; documents are runs of one id other than 0 and do not see each other.
            Tokens with id 0 are padding: they change nothing, their output is 0, and they do not end a document.
        use_qk_l2norm: Bring q and k to unit length first, x / sqrt(sum x^2 + 1e-6), in float32.
        chunk_size: Tokens per chunk: 16, 32, 64 or 128. Changes speed and memory, not the result.
        implementation: "mosaic_gpu", the kernels for Hopper GPUs; "xla", plain JAX for everything; None takes the
            kernels where they serve, that is bfloat16 q, k and v with K a multiple of 8 up to 256 and V one up to 512,
            chunks of 64 tokens and jax 0.11 or newer. Which and why is logged once.

    Returns:
        The output in v's dtype, and the float32 state after the last token, that of the row's last document.
        Plain JAX computes all of it in float32 (in float64 if any input is); the kernels multiply in bfloat16, add up
        in float32, and keep state, decay and gates in float32.

    Raises:
        ValueError: Shapes that do not fit together, an impossible `chunk_size`, an unknown `implementation` or one
            that does not serve the call.
    """
    _check_shapes(q, k, v, g, beta, initial_state, segment_ids)
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size is {chunk_size}, expected one of {CHUNK_SIZES}")
    run = choose_chunked(implementation, q, k, v, chunk_size)
    arguments = _prepare(q, k, v, g, beta, initial_state, segment_ids, use_qk_l2norm)
    return run(*arguments, _default_scale(q, scale), chunk_size)


def recurrent_gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T N V"],
    g: Float[Array, "B T N"],
    beta: Float[Array, "B T N"],
    scale: float | None = None,
    initial_state: Float[Array, "B N K V"] | None = None,
    segment_ids: Integer[Array, "B T"] | None = None,
    use_qk_l2norm: bool = False,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N K V"]]:
    """Gated delta rule one token after the other: for decoding, and as the reference of the chunked form.

    Arguments, results and errors are those of `chunk_gated_delta_rule`. The kernel takes calls of one token, V from
    64 on, and updates the state in place where the caller's buffer may be reused; it computes in float32.
    """
    _check_shapes(q, k, v, g, beta, initial_state, segment_ids)
    run = choose_recurrent(implementation, q, k, v)
    arguments = _prepare(q, k, v, g, beta, initial_state, segment_ids, use_qk_l2norm)
    return run(*arguments, _default_scale(q, scale))


def _default_scale(q: Array, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _check_shapes(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    initial_state: Array | None,
    segment_ids: Array | None,
) -> None:
    """Raise ValueError naming the first argument whose shape does not fit those before it."""
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q has shape {q.shape}, expected [B, T, H, K] with no empty dim")
    batch, length, num_key_heads, key_dim = q.shape
    if v.ndim != 4 or v.shape[:2] != (batch, length) or 0 in v.shape or v.shape[2] % num_key_heads:
        raise ValueError(
            f"v has shape {v.shape}, expected [{batch}, {length}, N, V], N a multiple of {num_key_heads}"
        )
    num_heads, value_dim = v.shape[2:]
    expected = {
        "k": (k, q.shape),
        "g": (g, (batch, length, num_heads)),
        "beta": (beta, (batch, length, num_heads)),
        "initial_state": (initial_state, (batch, num_heads, key_dim, value_dim)),
        "segment_ids": (segment_ids, (batch, length)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape} (q {q.shape}, v {v.shape})")


def _prepare(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    initial_state: Array | None,
    segment_ids: Array | None,
    use_qk_l2norm: bool,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """q, k, v, g, beta and initial state of the plain rule: normalised, documents separated, nothing left out."""
    dtype = compute_dtype(q, k, v, g, beta)
    g, beta = g.astype(dtype), beta.astype(dtype)
    if use_qk_l2norm:
        q, k = _l2_normalize(q.astype(dtype)), _l2_normalize(k.astype(dtype))
    if segment_ids is not None:
        q, k, v, g, beta = separate_documents(q, k, v, g, beta, segment_ids)
    if initial_state is None:
        shape = (v.shape[0], v.shape[2], k.shape[3], v.shape[3])
        initial_state = jnp.zeros_like(
            v, shape=shape, dtype=dtype
        )  # like v: inside shard_map it varies as v does
    return q, k, v, g, beta, initial_state.astype(dtype)


def _l2_normalize(x: Array) -> Array:
    return x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + _L2_NORM_EPS)
