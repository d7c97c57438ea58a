# %% [markdown]
# # 3. From and to Hugging Face
#
# A model made here can be loaded by transformers and vLLM, and theirs here, with nothing lost on the way.
# This notebook writes a model in Hugging Face's form, reads it back to the last bit, and lets transformers'
# own PyTorch code compute the same logits from the same files, in both directions.

# %%
from importlib.util import find_spec

if find_spec("hybrid_jax") is None:
    print("installing hybrid-jax, PyTorch and transformers, which takes some minutes")
    # %pip install --quiet "..[notebook]" torch transformers

# %%
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.utils.capture import capture_output
from safetensors.numpy import load_file

from hybrid_jax.checkpoints import from_pretrained, load_orbax, save_orbax, save_pretrained
from hybrid_jax.data.prepare import prepare_stdlib_corpus
from hybrid_jax.data.tokenizer import load_tokenizer
from hybrid_jax.generation import generate
from hybrid_jax.models import named_parameters
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import load

# PyTorch and transformers are no dependency of the project: what compares with them is left out where they are missing.
try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None
    print("The cells marked 'transformers' are left out. To run them: pip install torch transformers")
else:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print("torch", torch.__version__.split("+")[0], "and transformers", transformers.__version__)

# %% [markdown]
# ## To Hugging Face
#
# The model is the small one of [notebook 4](04_train.ipynb), trained here in a minute or two if that has not
# been run. `save_pretrained` writes the folder, tokenizer included.

# %%
plt.style.use("figures.mplstyle")
run = load(RunConfig, Path("small.yaml"))
corpus = prepare_stdlib_corpus(run.output_folder / "data", run.model.vocab_size)
with capture_output():
    model = train(run).model

folder = run.output_folder / "hf"
save_pretrained(model, folder, tokenizer_from=corpus.folder)
for path in sorted(folder.iterdir()):
    print(f"{path.stat().st_size:>10,} bytes  {path.name}")

# %% [markdown]
# Modules have Hugging Face's names on both sides; what differs is how arrays lie. Ours are stacked over
# layers that repeat: the three Gated DeltaNet layers are group 0, the attention layer is group 1. Kernels are
# `[in, out]`, the transpose of PyTorch's.

# %%
ours = named_parameters(model)
theirs = load_file(folder / "model.safetensors")

for our_name, their_name in {
    "embed_tokens.embedding": "model.embed_tokens.weight",
    "groups.0.layers.0.linear_attn.q_proj.kernel": "model.layers.0.linear_attn.q_proj.weight",
    "groups.0.layers.0.linear_attn.q_conv1d.kernel": "model.layers.0.linear_attn.q_conv1d.weight",
    "groups.0.layers.0.linear_attn.A_log": "model.layers.0.linear_attn.A_log",
    "groups.1.layers.0.self_attn.q_proj.kernel": "model.layers.3.self_attn.q_proj.weight",
    "groups.1.layers.0.mlp.down_proj.kernel": "model.layers.3.mlp.down_proj.weight",
    "norm.scale": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
}.items():
    print(f"{our_name:46} {ours[our_name].shape!s:14} {their_name:43} {theirs[their_name].shape}")

# %% [markdown]
# ## There and back
#
# The same bits return, from Hugging Face's form and from an Orbax checkpoint, which is what training runs
# keep.


# %%
def same_bits(first, second):
    """Whether two models have equal parameters, each to the last bit."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), first, second))


again = from_pretrained(folder)
print("Hugging Face:", same_bits(model, again))

orbax_folder = run.output_folder / "orbax"
shutil.rmtree(orbax_folder, ignore_errors=True)
save_orbax(model, orbax_folder)
print("Orbax:       ", same_bits(model, load_orbax(orbax_folder)))

# %% [markdown]
# The same from a shell: `python scripts/convert.py to-hf RUN_FOLDER OUT`, `to-orbax` for the way back, and
# `inspect` to see what a folder holds.

# %% [markdown]
# ## The same logits (transformers)
#
# transformers' `OlmoHybridForCausalLM` reads the folder and runs its own implementation, token ids being the
# same. What differs is the order in which float32 numbers are added up.

# %%
text = "def main(argv=None):\n    parser = argparse.ArgumentParser(description=__doc__)\n"
tokenizer = load_tokenizer(folder)
ids = tokenizer.encode(text).ids
our_logits = np.asarray(model(jnp.array([ids])).logits)

if transformers:
    their_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        their_logits = their_model(torch.tensor([ids]), use_cache=False).logits.numpy()
    print(type(their_model).__name__, their_logits.shape)
    print(f"standard deviation of the logits  {their_logits.std():.2f}")
    print(f"largest difference                {np.abs(our_logits - their_logits).max():.0e}")

# %% [markdown]
# For scale: the same model in bfloat16, in which the 7B is released, differs from float32 by ten thousand
# times as much.

# %%
half = from_pretrained(folder, dtype=jnp.bfloat16)
differences = {"bfloat16 instead of float32": np.asarray(half(jnp.array([ids])).logits) - our_logits}
if transformers:
    differences["transformers instead of hybrid-jax"] = their_logits - our_logits

figure, axes = plt.subplots(figsize=(7, 3))
bins = np.geomspace(1e-9, 1, 91)
for label, difference in differences.items():
    axes.hist(np.abs(difference).ravel(), bins, alpha=0.7, label=label)
axes.set(xscale="log", xlabel="difference of a logit", ylabel="logits")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()

# %% [markdown]
# And so they write the same text, token by token:

# %%
(new,) = generate(model, [ids], max_new_tokens=24)
print(tokenizer.decode(ids + new))
if transformers:
    with torch.no_grad():
        both = their_model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
    print("\ntransformers writes the same:", both[0].tolist() == ids + new)

# %% [markdown]
# ## From Hugging Face (transformers)
#
# The other way round: a model that transformers made, with random weights, is saved by transformers and
# loaded here. The released 7B comes by the same call, `from_pretrained("allenai/Olmo-Hybrid-7B")`.

# %%
if transformers:
    torch.manual_seed(0)
    config = transformers.OlmoHybridConfig(**model.config.to_hf())
    random_model = transformers.OlmoHybridForCausalLM(config).eval()
    random_model.save_pretrained(run.output_folder / "theirs")

    loaded = from_pretrained(run.output_folder / "theirs")
    with torch.no_grad():
        expected = random_model(torch.tensor([ids]), use_cache=False).logits.numpy()
    found = np.asarray(loaded(jnp.array([ids])).logits)
    print(f"standard deviation of the logits  {expected.std():.2f}")
    print(f"largest difference                {np.abs(found - expected).max():.0e}")

# %% [markdown]
# `tests/checkpoints/test_parity.py` holds logits, loss and gradients to this, for OLMo Hybrid and OLMo 3,
# with RoPE, YaRN and without positions, in float32 and from bfloat16 files.
