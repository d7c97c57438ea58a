# %% [markdown]
# # 2. Inside a Gated DeltaNet layer
#
# A Gated DeltaNet layer reads a text with a memory of fixed size: for each head one matrix $S$, the state. At
# every token it forgets a little, corrects what the state says about the token's key, and reads the state
# with the token's query:
#
# $$S \leftarrow \alpha S, \qquad S \leftarrow S + k\, \beta\,(v - S^\top k)^\top, \qquad o = S^\top q / \sqrt{K}$$
#
# Decay $\alpha$ and write strength $\beta$ are chosen by the layer for each token and head. This notebook
# takes a trained layer apart and draws them over a real piece of code.

# %%
from importlib.util import find_spec

if find_spec("hybrid_jax") is None:
    print("installing hybrid-jax, which takes some minutes")
    # %pip install --quiet "..[notebook]"

# %%
import fnmatch
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.utils.capture import capture_output

from hybrid_jax.data.prepare import prepare_stdlib_corpus
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.models.tokens import describe_tokens
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import load
from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule

# %% [markdown]
# ## A model and a text
#
# A small OLMo Hybrid, trained on Python's standard library: a minute or two if no other notebook has done it.
# The text is a function that it has not been trained on, since `fnmatch.py` is among the files held out.

# %%
plt.style.use("figures.mplstyle")
run = load(RunConfig, Path("small.yaml"))
corpus = prepare_stdlib_corpus(run.output_folder / "data", run.model.vocab_size)
with capture_output():
    model = train(run).model
tokenizer = load_tokenizer(corpus.folder)

text = inspect.getsource(fnmatch.filter)
ids = jnp.array([tokenizer.encode(text).ids])
labels = [repr(tokenizer.decode([token]))[1:-1].strip() for token in ids[0].tolist()]
print(text)
print(f"{ids.shape[1]} tokens")

# %% [markdown]
# ## Taken apart
#
# `model.layer(i)` is one layer with its parameters. Its way from input to output: normalise, project to
# queries, keys and values, mix each channel over the last four tokens (`q_conv1d` and its like), bring
# queries and keys to unit length; and from two more projections decay and write strength.
#
# $$\alpha = \exp(-e^{A}\,\mathrm{softplus}(a + \mathrm{bias})), \qquad \beta = 2\,\sigma(b)$$


# %%
def inside(model, ids, index):
    """What layer ``index`` computes on its way: a dictionary of arrays [T, heads, ...]."""
    tokens, _ = describe_tokens(ids.shape, None, None, None)
    x = model.embed_tokens(ids)
    for before in range(index):
        x, _ = model.layer(before)(x, tokens, None)
    layer = model.layer(index)
    gdn = layer.linear_attn
    x = layer.input_layernorm(x)

    def heads(project, convolve, width):
        mixed, _ = convolve(project(x), tokens, None)
        return mixed.reshape(ids.shape[1], -1, width)

    q = heads(gdn.q_proj, gdn.q_conv1d, gdn.key_head_dim)
    k = heads(gdn.k_proj, gdn.k_conv1d, gdn.key_head_dim)
    step = jax.nn.softplus(gdn.a_proj(x)[0] + gdn.dt_bias[...])
    return {
        "q": q / jnp.linalg.norm(q, axis=-1, keepdims=True),
        "k": k / jnp.linalg.norm(k, axis=-1, keepdims=True),
        "v": heads(gdn.v_proj, gdn.v_conv1d, gdn.value_head_dim),
        "alpha": jnp.exp(-jnp.exp(gdn.A_log[...]) * step),
        "beta": gdn.beta_range * jax.nn.sigmoid(gdn.b_proj(x)[0]),
    }


LAYER = 1
parts = jax.jit(inside, static_argnums=2)(model, ids, LAYER)
for name, value in parts.items():
    print(f"{name:6}", value.shape)

# %% [markdown]
# ## The rule, token by token
#
# The three formulas above are all there is to it. `jax.lax.scan` runs them along the text and keeps each
# state.


# %%
def delta_rule(state, token):
    q, k, v, alpha, beta = (token[name] for name in ("q", "k", "v", "alpha", "beta"))
    state = alpha[:, None, None] * state
    correction = beta[:, None] * (v - jnp.einsum("hkv,hk->hv", state, k))
    state = state + jnp.einsum("hk,hv->hkv", k, correction)
    output = jnp.einsum("hkv,hk->hv", state, q) / np.sqrt(q.shape[-1])
    return state, {"state": state, "correction": correction, "output": output}


num_tokens, num_heads, key_dim = parts["k"].shape
empty = jnp.zeros((num_heads, key_dim, parts["v"].shape[-1]))
_, seen = jax.lax.scan(delta_rule, empty, parts)

print("states ", seen["state"].shape)
print("outputs", seen["output"].shape)

# %% [markdown]
# That this is what the model computes can be checked: the cache it returns holds the same last state. Inside,
# it runs `chunk_gated_delta_rule`, which takes 64 tokens at a time with matrix products and is the same
# function.

# %%
linear, _ = model(ids).cache.layers
print(
    f"the model's own state differs by {jnp.abs(linear[0].state[LAYER, 0] - seen['state'][-1]).max():.0e} at most"
)

q, k, v, alpha, beta = (parts[name][None] for name in ("q", "k", "v", "alpha", "beta"))
output, _ = chunk_gated_delta_rule(q, k, v, jnp.log(alpha), beta)
print(f"outputs of the chunked rule by   {jnp.abs(output[0] - seen['output']).max():.0e}")

# %% [markdown]
# ## Decay and write strength over the text
#
# A row is a head, a column a token. Where $\alpha$ is dark the head forgets; where $\beta$ is near 0 (blue)
# it hardly writes, and where it is above 1 (red) it writes more than the whole correction, so that what the
# state says about the key changes sides. The last head hardly forgets, and writes little but at a few tokens,
# quotes and brackets among them.

# %%
shown = slice(0, 70)
figure, panels = plt.subplots(2, 1, figsize=(12, 4.4), sharex=True)
for axes, name, colours, low, high in zip(
    panels, ("alpha", "beta"), ("viridis", "RdBu_r"), (0, 0), (1, 2), strict=True
):
    image = axes.imshow(parts[name][shown].T, cmap=colours, vmin=low, vmax=high)
    axes.set_yticks(range(num_heads))
    axes.set(ylabel="head")
    axes.grid(False)
    axes.set_title({"alpha": r"decay $\alpha$", "beta": r"write strength $\beta$"}[name])
    figure.colorbar(image, ax=axes, pad=0.01)
panels[1].set_xticks(range(len(labels[shown])), labels[shown], rotation=90, family="monospace", fontsize=8)
plt.show()

# %% [markdown]
# ## How long each head remembers
#
# A decay of $\alpha$ at every token halves the state in $\ln ½ / \ln α$ tokens. Heads divide the work: some
# hold on to a whole function, others to a few tokens. Each line spans the middle 80% of the text's tokens.

# %%
figure, axes = plt.subplots(figsize=(7, 3.4))
ticks = []
linear = [index for index, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]
for index in linear:
    decay = jax.jit(inside, static_argnums=2)(model, ids, index)["alpha"]
    half_life = np.log(0.5) / np.log(np.minimum(np.asarray(decay), 1 - 1e-6))
    low, middle, high = np.percentile(half_life, (10, 50, 90), axis=0)
    places = len(ticks) + np.arange(num_heads)
    axes.hlines(places, low, high, color=f"C{index}", linewidth=3, alpha=0.4)
    axes.plot(middle, places, "o", color=f"C{index}", label=f"layer {index}")
    ticks += [f"head {head}" for head in range(num_heads)]
axes.axvline(num_tokens, color="gray", linestyle=":", label="this text")
axes.set_yticks(range(len(ticks)), ticks)
axes.invert_yaxis()
axes.set(xscale="log", xlabel="half-life (tokens)")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## The state as tokens come
#
# Its norm jumps where a head writes and falls where it forgets. The head that remembers longest fills slowly.

# %%
norms = jnp.linalg.norm(seen["state"], axis=(2, 3))
figure, axes = plt.subplots(figsize=(10, 2.6))
for head in range(num_heads):
    axes.plot(norms[:, head], label=f"head {head}", linewidth=1.2)
axes.set(xlabel="token", ylabel=r"$\|S\|$", title=f"layer {LAYER}", xlim=(0, num_tokens - 1), ylim=(0, None))
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The matrix of one head, the one that remembers longest, after 8 tokens, 32, and the whole text:

# %%
head = int(jnp.mean(parts["alpha"], axis=0).argmax())
moments = (7, 31, num_tokens - 1)
limit = float(jnp.abs(seen["state"][-1, head]).max())
figure, panels = plt.subplots(1, len(moments), figsize=(11, 2.6), sharey=True)
for axes, moment in zip(panels, moments, strict=True):
    image = axes.imshow(seen["state"][moment, head], cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set(title=f"after {moment + 1} tokens", xlabel="value dim")
    axes.grid(False)
panels[0].set_ylabel("key dim")
figure.colorbar(image, ax=panels, pad=0.01)
figure.suptitle(f"state of head {head}", fontsize=10)
plt.show()

# %% [markdown]
# ## What a head reads
#
# Unrolled, the output at token $t$ is a sum over the corrections $u_s$ written so far, each weighted by how
# well query and key match and by the decay in between. It is attention without softmax, over corrections
# instead of values:
#
# $$o_t = \sum_{s \le t} w_{ts}\, u_s, \qquad w_{ts} = \frac{q_t \cdot k_s}{\sqrt{K}} \prod_{r=s+1}^{t} \alpha_r$$

# %%
log_decay = jnp.cumsum(jnp.log(parts["alpha"]), axis=0)
between = jnp.exp(jnp.minimum(log_decay[:, None] - log_decay[None], 0)) * jnp.tri(num_tokens)[..., None]
weights = jnp.einsum("thk,shk->tsh", parts["q"], parts["k"]) / np.sqrt(key_dim) * between
unrolled = jnp.einsum("tsh,shv->thv", weights, seen["correction"])
print(f"differs from the rule's outputs by {jnp.abs(unrolled - seen['output']).max():.0e} at most")

# %% [markdown]
# Drawn for that head, the size of each term: row $t$ is what the head reads at that token, column $s$ where
# it was written. Columns stand out: they are the tokens at which it wrote, read again and again until
# something overwrites them.

# %%
contribution = weights[..., head] * jnp.linalg.norm(seen["correction"][:, head], axis=-1)
shown = slice(20, 70)
window = np.where(np.tri(num_tokens), np.abs(contribution), np.nan)[shown, shown]
figure, axes = plt.subplots(figsize=(8.6, 8))
image = axes.imshow(window, cmap="magma_r", vmax=np.nanpercentile(window, 99.5))
ticks = {"family": "monospace", "fontsize": 7}
axes.set_xticks(range(len(window)), labels[shown], rotation=90, **ticks)
axes.set_yticks(range(len(window)), labels[shown], **ticks)
axes.set(xlabel="written at", ylabel="read at", title=rf"$|w_{{ts}}|\,\|u_s\|$ of head {head}")
axes.grid(False)
figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01)
plt.show()

# %% [markdown]
# ## Eigenvalues below zero
#
# Along the key, one token multiplies the state by $\alpha(1 - \beta)$; across it, by $\alpha$. With $\beta$
# up to 2 that eigenvalue can be negative, and a value flip its sign: what a layer needs to follow swaps
# ([notebook 5](05_expressivity.ipynb)). How often does this one use it?

# %%
figure, axes = plt.subplots(figsize=(7, 3))
along_key = np.asarray(parts["alpha"] * (1 - parts["beta"]))
bins = np.linspace(-1, 1, 41)
axes.hist(along_key, bins, stacked=True, label=[f"head {head}" for head in range(num_heads)])
axes.axvline(0, color="black", linewidth=1)
axes.set(xlabel=r"eigenvalue along the key, $\alpha(1-\beta)$", ylabel="tokens")
axes.legend()
plt.show()
print(f"negative for {np.mean(along_key < 0):.0%} of tokens and heads")
