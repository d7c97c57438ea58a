# %% [markdown]
# # 1. Load, generate, look at logits
#
# OLMo Hybrid is a language model in which three of four layers are a linear RNN, Gated DeltaNet, and the
# fourth is attention. Here one is loaded, writes a few lines, and shows what it computes before each token:
# its logits.
#
# Two CPU cores do, and no network is needed.

# %%
from importlib.util import find_spec

if find_spec("hybrid_jax") is None:
    print("installing hybrid-jax, which takes some minutes")
    # %pip install --quiet "..[notebook]"

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.utils.capture import capture_output
from tokenizers import Tokenizer

import hybrid_jax
from hybrid_jax.data.prepare import prepare_stdlib_corpus
from hybrid_jax.models import init_cache
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import load

# %% [markdown]
# ## A model on disk
#
# The released 7B is one line away, for a machine with network and 15 GB of memory for its weights:
#
# ```python
# model = hybrid_jax.from_pretrained("allenai/Olmo-Hybrid-7B", dtype=jnp.bfloat16)
# ```
#
# This notebook takes a small one with the same kinds of layers, trained on the source code of Python's
# standard library. [Notebook 4](04_train.ipynb) watches that happen; if it has not run yet, the model is
# trained here, in a minute or two.

# %%
plt.style.use("figures.mplstyle")
run = load(RunConfig, Path("small.yaml"))
corpus = prepare_stdlib_corpus(run.output_folder / "data", run.model.vocab_size)
with capture_output():
    trained = train(run).model
folder = run.output_folder / "hf"
hybrid_jax.save_pretrained(trained, folder, tokenizer_from=corpus.folder)
print(*sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## Load
#
# A folder in Hugging Face's form, or an id on the hub, becomes a model with one call. A model is a pytree of
# parameters: `jax.jit`, `jax.grad` and `jax.tree.map` work on it as they do on a dictionary of arrays.

# %%
model = hybrid_jax.from_pretrained(folder)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

print(
    f"{sum(leaf.size for leaf in jax.tree.leaves(model)):,} parameters, vocabulary of {model.config.vocab_size:,}"
)
print(*model.config.layer_types, sep="\n")

# %% [markdown]
# ## Generate
#
# Token ids in, new token ids out. Temperature 0 takes the likeliest token each time; above, tokens are drawn.
# The model has read Python for a minute or two: it knows how the language looks, not what it means.

# %%
prompt = tokenizer.encode("class Stack:\n    def __init__(self").ids
for temperature in (0.0, 0.7, 1.2):
    (new,) = hybrid_jax.generate(model, [prompt], max_new_tokens=48, temperature=temperature, seed=1)
    print(f"--- temperature {temperature}")
    print(tokenizer.decode(prompt + new))

# %% [markdown]
# ## Logits
#
# Called on token ids, the model returns for each of them the logits of its successor, and a cache (below).

# %%
text = "for i in range("
ids = tokenizer.encode(text).ids
output = model(jnp.array([ids]))

print([tokenizer.decode([token]) for token in ids])
print("logits", output.logits.shape, output.logits.dtype)

# %% [markdown]
# The softmax of the last row is what the model expects next. Four beginnings, and the eight likeliest tokens
# for each. They are one batch: what is padded after a text changes nothing before it.

# %%
beginnings = ("for i in", "import", "def __init__(", "if x is")
encoded = [tokenizer.encode(text).ids for text in beginnings]
padded = np.zeros((len(encoded), max(map(len, encoded))), int)
for row, ids in zip(padded, encoded, strict=True):
    row[: len(ids)] = ids
logits = model(padded).logits
next_logits = [row[len(ids) - 1] for row, ids in zip(logits, encoded, strict=True)]

figure, panels = plt.subplots(1, 4, figsize=(11, 2.6), sharex=True)
for axes, text, row in zip(panels, beginnings, next_logits, strict=True):
    probabilities = np.asarray(jax.nn.softmax(row))
    best = np.argsort(probabilities)[:-9:-1]
    axes.barh(range(8), probabilities[best])
    axes.set_yticks(range(8), [repr(tokenizer.decode([token])) for token in best], family="monospace")
    axes.invert_yaxis()
    axes.set_title(repr(text), family="monospace")
    axes.set_xlabel("probability")
plt.show()

# %% [markdown]
# Temperature divides the logits before the softmax: below 1 it sharpens what the model expects, above 1 it
# flattens it.

# %%
figure, axes = plt.subplots(figsize=(6, 3))
for temperature in (0.5, 1.0, 2.0):
    probabilities = np.sort(jax.nn.softmax(next_logits[-1] / temperature))[::-1]
    axes.loglog(np.arange(1, len(probabilities) + 1), probabilities, label=f"temperature {temperature}")
axes.set(xlabel="rank of the token", ylabel="probability", ylim=(1e-8, 1), title=f"after {beginnings[-1]!r}")
axes.legend()
plt.show()

# %% [markdown]
# ## Surprise
#
# The logits at each token also say how likely the model found the one that did come. Its surprise, $-\log_2
# p$ in bits, is high where a text decides something, and low where its grammar leaves no choice.

# %%
text = '''def filter(names, pat):
    """Construct a list from those elements that match pat."""
    result = []
    for name in names:
        if match(name):
            result.append(name)
    return result
'''
ids = tokenizer.encode(text).ids
log_probabilities = jax.nn.log_softmax(model(jnp.array([ids])).logits[0])
surprise = -np.asarray(log_probabilities)[np.arange(len(ids) - 1), ids[1:]] / np.log(2)

figure, axes = plt.subplots(figsize=(12, 3.2))
axes.bar(range(len(surprise)), surprise)
axes.axhline(np.log2(model.config.vocab_size), color="gray", linestyle=":", label="all tokens alike")
labels = [repr(tokenizer.decode([token]))[1:-1].strip() for token in ids[1:]]
axes.set_xticks(range(len(surprise)), labels, rotation=90, family="monospace", fontsize=8)
axes.set(ylabel="surprise (bits)", xlim=(-1, len(surprise)))
axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
plt.show()
print(f"{surprise.sum() / len(text.encode()):.2f} bits per byte")

# %% [markdown]
# ## The cache
#
# A row can be continued from its cache, and gives what the whole row at once would have given. Attention
# keeps keys and values of every token; a Gated DeltaNet layer keeps one matrix for each head, however long
# the text.

# %%
cache = init_cache(model.config, batch_size=1, capacity=len(ids), max_tokens_per_call=1)
rows = []
for token in ids:
    output = model(jnp.array([[token]]), cache=cache)
    cache = output.cache
    rows.append(output.logits[0, 0])
whole = model(jnp.array([ids])).logits[0]
print(f"largest difference of a logit: {np.abs(np.stack(rows) - whole).max():.0e}")

(linear,), (attention,) = cache.layers
print("three Gated DeltaNet layers: states [layer, row, head, key dim, value dim]", linear.state.shape)
print("one attention layer:         keys   [layer, row, head, token, dim]       ", attention.k.shape)

# %% [markdown]
# [Notebook 2](02_inside_gated_deltanet.ipynb) opens one of those states.
