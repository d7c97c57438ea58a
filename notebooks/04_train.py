# %% [markdown]
# # 4. Train a small model and watch it
#
# An OLMo Hybrid with 1.4 million parameters learns to write Python from the source of Python's own standard
# library: a minute or two on two CPU cores. What it has learnt is looked at on the way and at the end, in
# text and in bits.

# %%
from importlib.util import find_spec

if find_spec("hybrid_jax") is None:
    print("installing hybrid-jax, which takes some minutes")
    # %pip install --quiet "..[notebook]"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

from hybrid_jax.checkpoints import load_orbax
from hybrid_jax.data.prepare import prepare_stdlib_corpus, read_held_out
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.evaluation import Document, border_token_id, compressed_bits_per_byte, pooled, score_documents
from hybrid_jax.generation import generate
from hybrid_jax.models import count_parameters, create_model
from hybrid_jax.training.curves import plot_runs
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import load

# %% [markdown]
# ## A run is a file
#
# All that decides a run stands in one YAML file, and an unknown or contradictory field is refused by name.
# `small.yaml`:

# %%
plt.style.use("figures.mplstyle")
print(Path("small.yaml").read_text())
run = load(RunConfig, Path("small.yaml"))

# %%
print(f"{count_parameters(run.model):,} parameters, {run.num_steps} steps of {run.tokens_per_step:,} tokens")
print("layers:", *run.model.layer_types)

# %% [markdown]
# ## Data
#
# The standard library's files become a tokenizer of 2,048 tokens and a shard of token ids. One file in 25 is
# held out.

# %%
corpus = prepare_stdlib_corpus(run.output_folder / "data", run.model.vocab_size)
tokenizer = load_tokenizer(corpus.folder)
print(f"{corpus.num_train_files} files, {corpus.num_train_tokens:,} tokens to train on")
print(f"{corpus.num_held_out_files} files held out")
print([tokenizer.decode([token]) for token in tokenizer.encode("def __init__(self, maxsize=0):").ids])

# %% [markdown]
# ## Train
#
# `train` runs a configuration to its end. Interrupt it (the stop button) and it saves and stops; run the cell
# again and it goes on from there, to the same parameters bit for bit. A run that is complete is only read.

# %%
model = train(run).model

# %% [markdown]
# ## Curves
#
# Every step's figures are in `metrics.jsonl`, here drawn by the project's own `plot_runs` (`python
# scripts/plot.py` in a shell). Loss falls from $\ln 2048 = 7.6$, that of a model that finds all tokens alike.

# %%
curves = run.output_folder / "curves.png"
plot_runs([run.output_folder], curves)
display(Image(curves, width=800))

# %% [markdown]
# ## What it writes
#
# The run kept checkpoints of its first steps. The same beginning, continued by each of them at temperature
# 0.7:

# %%
steps = (0, *run.checkpoint.permanent_steps, run.num_steps)
models = {
    step: load_orbax(run.output_folder / "checkpoints" / str(step)) if step else create_model(run.model)
    for step in steps
}
prompt = tokenizer.encode("class Stack:\n    def ").ids
for step, each in models.items():
    (new,) = generate(each, [prompt], max_new_tokens=56, temperature=0.7, top_p=0.95, seed=0)
    print(f"--- after {step} steps\n{tokenizer.decode(prompt + new)}\n")

# %% [markdown]
# ## How well it foretells text it has not seen
#
# Bits per byte count how much a model leaves to be said about a text, whatever its tokens: 8 for one that
# knows nothing of bytes. Compressors are measured by the same number. The text: ten of the held-out files.

# %%
files = read_held_out(corpus.held_out_path)[:10]
documents = [
    Document(file.path, np.array(tokenizer.encode(file.text).ids), len(file.text.encode())) for file in files
]
scores = {
    step: pooled("held out", score_documents(each, documents, border_token_id(run.model), max_length=256))
    for step, each in models.items()
}
compressors = compressed_bits_per_byte("".join(file.text for file in files).encode())

for name, bits in compressors.items():
    print(f"{name:16} {bits:.2f} bits per byte")
for step, score in scores.items():
    print(f"after {step:3} steps  {score.bits_per_byte:.2f}")

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2))
tokens = [step * run.tokens_per_step for step in steps]
axes.plot(tokens, [score.bits_per_byte for score in scores.values()], "o-", label="the model")
for (name, bits), color in zip(compressors.items(), ("C1", "C2"), strict=True):
    axes.axhline(bits, color=color, linestyle="--", label=name)
axes.set(xlabel="tokens trained on", ylabel="bits per byte, held-out files", ylim=(0, None))
axes.xaxis.set_major_formatter("{x:,.0f}")
axes.legend()
plt.show()

# %% [markdown]
# ## Further
#
# - Other settings are other files or flags: `python scripts/train.py notebooks/small.yaml --help` lists every
#   field.
# - `make quickstart` trains a larger one for longer.
# - `configs/olmo_hybrid_7b` has every stage of the 7B's training, and `python scripts/plan.py` tells what it
#   would take.
