# %% [markdown]
# # 6. Scaling laws from the published points
#
# The paper's claim ([arXiv 2604.03444](https://arxiv.org/abs/2604.03444), Section 4): a hybrid needs fewer
# tokens than a transformer of the same size to reach the same loss, and the larger the model, the fewer. The
# laws behind it are published as five rounded coefficients each. What do those digits say, how much do they
# leave open, and what would it take to know better? No model is trained here: it is all arithmetic.

# %%
from importlib.util import find_spec

if find_spec("hybrid_jax") is None:
    print("installing hybrid-jax, which takes some minutes")
    # %pip install --quiet "..[notebook]"

# %%
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display

from hybrid_jax.scaling import FitConfig, LadderPoint, fit_law, published, token_savings
from hybrid_jax.scaling.plots import plot_frontier, plot_published_savings
from hybrid_jax.scaling.points import ARCHITECTURES
from hybrid_jax.scaling.savings import bootstrap_interval

# %% [markdown]
# ## The laws as printed
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# Loss in nats per token of a model with $N$ parameters after $D$ tokens: what no model can get below, what
# the model's size costs, what the lack of data costs.

# %%
plt.style.use("figures.mplstyle")
laws = {name: rounded.law for name, rounded in published.FREE.items()}
print(f"{'':15}{'E':>8}{'A':>9}{'alpha':>8}{'B':>9}{'beta':>8}")
for name, law in laws.items():
    print(f"{ARCHITECTURES[name]:15}{law.E:8.2f}{law.A:9.2f}{law.alpha:8.3f}{law.B:9.2f}{law.beta:8.3f}")

# %% [markdown]
# ## Tokens to a loss
#
# For a model of 7B parameters the laws are curves over tokens. Where they cross 2.474, the lowest loss that
# was observed, is how many tokens each needs; the ratio of two such numbers is a token saving.

# %%
SIZE = 7e9
figure, axes = plt.subplots(figsize=(7, 3.6))
tokens = np.geomspace(3e9, 3e12, 100)
for name, law in laws.items():
    (line,) = axes.plot(tokens, law.loss(SIZE, tokens), label=ARCHITECTURES[name])
    needed = law.tokens_for_loss(SIZE, published.TARGET_LOSS)
    axes.plot(needed, published.TARGET_LOSS, "o", color=line.get_color())
    print(f"{ARCHITECTURES[name]:15} {needed / 1e9:5.1f} billion tokens")
axes.axhline(published.TARGET_LOSS, color="gray", linestyle=":")
axes.set(
    xscale="log", xlabel="training tokens", ylabel="loss (nats per token)", title="models of 7B parameters"
)
axes.legend()
plt.show()
saving = token_savings(laws["olmo3"], laws["olmo_hybrid"], SIZE, published.TARGET_LOSS)
print(f"OLMo 3 needs {saving:.2f} times the tokens of OLMo Hybrid")

# %% [markdown]
# ## The paper prints 1.68
#
# The difference is in the digits: "1.60" is anything from 1.595 to 1.605. How far does each digit reach? Each
# coefficient in turn is moved by half a unit of its last digit, down and up:

# %%
names = ("E", "A", "alpha", "B", "beta")
figure, axes = plt.subplots(figsize=(9, 3.6))
labels = []
for name in ("olmo3", "olmo_hybrid"):
    for index, coefficient in enumerate(names):
        moved = [published.FREE[name].moved(move * np.eye(5)[index]) for move in (-1.0, 1.0)]
        changed = [laws | {name: law} for law in moved]
        low, high = sorted(
            token_savings(each["olmo3"], each["olmo_hybrid"], SIZE, published.TARGET_LOSS) for each in changed
        )
        axes.barh(len(labels), high - low, left=low, color="C0" if name == "olmo3" else "C1")
        labels.append(
            f"{ARCHITECTURES[name]}, {coefficient} = {getattr(published.FREE[name], coefficient).digits}"
        )
axes.axvline(saving, color="black", linewidth=1, label="digits as printed")
axes.axvline(1.68, color="black", linewidth=1, linestyle=":", label="printed saving")
axes.set_yticks(range(len(labels)), labels)
axes.invert_yaxis()
axes.set(xlabel="token saving at 7B")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The last digits of $E$ and of the exponents each move the saving by about 0.1 either way, those of $A$ and
# $B$ not at all. No single one explains 1.68. All ten at their ends at once give the whole interval, exactly,
# since the saving rises or falls with each of them alone: 1.37 to 2.52.

# %% [markdown]
# ## Printed, recomputed, allowed
#
# The same for every size. Last column: the paper's own bootstrap interval, which says how far the data
# determine the saving, where ours says only how far the print does.

# %%
rows = published.compare()
savings = [row for row in rows if (row.quantity, row.architecture) == ("token savings", "olmo_hybrid")]
lines = [
    "| N | printed | from the digits | rounding allows | the paper's 95% interval |",
    "|---|---|---|---|---|",
]
for row, (low, high) in zip(savings, published.SAVINGS_INTERVALS["olmo_hybrid"], strict=True):
    allowed = f"{row.low:.2f} to {row.high:.2f}"
    lines.append(
        f"| {row.at} | {row.printed.digits} | {row.ours:.2f} | {allowed} | {low:.2f} to {high:.2f} |"
    )
display(Markdown("\n".join(lines)))

# %%
folder = Path("../runs/notebooks/scaling")
plot_published_savings(
    rows, published.SAVINGS_INTERVALS, published.REFERENCE, published.TARGET_LOSS, folder / "savings.png"
)
display(Image(folder / "savings.png", width=900))

# %% [markdown]
# Every printed saving lies where the rounding allows it. Most of the paper's own intervals reach below 1,
# which would be no saving at all.

# %% [markdown]
# ## The best use of a budget
#
# For a budget of $C = 6 N D$ operations there is one best size. The curves are the printed laws, the squares
# the paper's Table 19.

# %%
plot_frontier(laws, (5e17, 2e23), folder / "frontier.png", printed=rows)
display(Image(folder / "frontier.png", width=900))

# %% [markdown]
# All printed numbers that follow from the laws, and how many of them the rounding explains:

# %%
print(f"{sum(row.allowed for row in rows)} of {len(rows)}")
for row in rows:
    if not row.allowed:
        print(
            f"not: {row.quantity}, {ARCHITECTURES[row.architecture]}, {row.at}: printed {row.printed.digits}, "
            f"rounding allows {row.low:.3f} to {row.high:.3f}"
        )

# %% [markdown]
# Where the paper disagrees with itself:

# %%
for number, contradiction in enumerate(published.CONTRADICTIONS, start=1):
    print(textwrap.fill(contradiction, 100, initial_indent=f"{number}. ", subsequent_indent="   "))

# %% [markdown]
# ## How much a ladder can tell
#
# Suppose the printed laws are the truth, and someone trains the paper's ladder again: seven sizes, five
# horizons, and 0.3% of noise in each loss. Fitting those 35 points of each architecture shows what such a
# ladder determines.

# %%
MILLIONS = (57, 102, 190, 371, 548, 758, 1279)
HORIZONS = (0.5, 1, 2, 4, 8)
rng = np.random.default_rng(0)


def ladder(name):
    """A point for each size and horizon: the law's loss, with noise."""
    points = []
    for millions in MILLIONS:
        for horizon in HORIZONS:
            num_params, num_tokens = millions * 10**6, int(20 * horizon * millions * 10**6)
            loss = laws[name].loss(float(num_params), float(num_tokens))
            point = LadderPoint(
                architecture=name,
                size=f"{millions}m",
                num_params=num_params,
                tokens=num_tokens,
                flops=6.0 * num_params * num_tokens,
                loss=float(loss * np.exp(0.003 * rng.standard_normal())),
                corpus="synthetic",
                tokenizer="none",
                vocab_size=100_352,
                horizon=float(horizon),
                decayed=True,
                seed=0,
            )
            points.append(point)
    return points


points = {name: ladder(name) for name in ("olmo3", "olmo_hybrid")}
print(len(points["olmo3"]), "points each")

# %% [markdown]
# Two ways to fit: all five coefficients free, or both exponents given. Intervals come from refitting to
# points drawn with replacement.

# %%
sizes = np.geomspace(1e9, 70e9, 40)
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for axes, exponents in zip(panels, (None, (0.22, 0.22)), strict=True):
    fits = {name: fit_law(each, exponents, FitConfig(num_bootstrap=200)) for name, each in points.items()}
    base, other = fits["olmo3"], fits["olmo_hybrid"]
    samples = token_savings(base.resampled, other.resampled, sizes[:, None], published.TARGET_LOSS)
    low, high = bootstrap_interval(np.asarray(samples).T)
    axes.fill_between(sizes, low, high, alpha=0.2, label="95% interval")
    axes.plot(sizes, token_savings(base.law, other.law, sizes, published.TARGET_LOSS), label="fitted")
    axes.plot(
        sizes,
        token_savings(laws["olmo3"], laws["olmo_hybrid"], sizes, published.TARGET_LOSS),
        "k:",
        label="truth",
    )
    axes.axhline(1, color="gray", linewidth=1)
    axes.set(xscale="log", xlabel="parameters", ylim=(0, 5))
    axes.set_title("exponents free" if exponents is None else "exponents given, 0.22")
    print(
        f"{'free' if exponents is None else 'given':5}  saving at 70B between {low[-1]:.1f} and {high[-1]:.1f}"
    )
panels[0].set_ylabel("token saving")
panels[0].legend()
plt.show()

# %% [markdown]
# Reaching from the ladder's 1.3B to 70B with free exponents is more than 35 points can carry: the interval
# holds everything from no saving to four times. With given exponents it is narrow, and at 70B does not hold
# the truth, whose exponents are others. An interval says how much noise can do, not how much an assumption
# can.
#
# `python scripts/fit_scaling.py LADDER.jsonl` fits a ladder of your own;
# [docs/scaling_laws.md](../docs/scaling_laws.md) has the rest.
