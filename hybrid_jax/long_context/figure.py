"""The figure of the study: four curves of RULER's score, and four of bits per byte by position."""

from pathlib import Path

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.evaluation.ruler.report import PUBLISHED_LENGTH, mean_by_length, published_at
from hybrid_jax.long_context.exam import Scores

# A hue for each model, a line for each method.
_COLORS = {"OLMo Hybrid": "#D55E00", "OLMo 3": "#0072B2"}
_LINES = {"YaRN": "o--", "DRoPE": "s-"}
_FAINT = {"alpha": 0.3, "markersize": 3, "linewidth": 1, "label": None}


def draw(scores: Scores, pretrained_length: int, image: Path) -> None:
    """Draw both into a PNG, the paper's scores with them; a line marks the length that pretraining's rows had.

    Raises:
        OSError: the picture cannot be written.
    """
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    means, published = mean_by_length(scores.cells), published_at(pretrained_length)
    for name, positions in scores.positions.items():
        family, method = name.split(", ")
        style = {"color": _COLORS[family], "markersize": 5, "label": name}
        left.plot(list(means[name]), list(means[name].values()), _LINES[method], **style)
        ends = [each.stop for each in positions]
        right.plot(ends, [each.bits_per_byte for each in positions], _LINES[method], **style)
        paper = published.get(f"{family} 7B, {method} (paper)", {})
        left.plot(list(paper), list(paper.values()), _LINES[method], **style | _FAINT)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.axvline(pretrained_length, color="black", linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    left.set(xlabel="length of the question (tokens)", ylabel="RULER score", ylim=(-3, 103))
    right.set(xlabel="position in the text (tokens, up to)", ylabel="bits per byte, held out")
    title = f"pretrained at {pretrained_length:,}, then extended\n(faint: the paper's 7B, at {PUBLISHED_LENGTH:,})"
    left.legend(edgecolor="none", fontsize=9, title=title, loc="lower left", bbox_to_anchor=(0, 0.1))
    with write_then_rename(image) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
