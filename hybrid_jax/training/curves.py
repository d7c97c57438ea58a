"""The loss curve of a run as a picture."""

from pathlib import Path

import numpy as np

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.errors import InputError
from hybrid_jax.training.metrics import JSONL_NAME, read_metrics


def plot_loss(run_folder: Path, image: Path, title: str) -> None:
    """Draw training loss over tokens from a run's ``metrics.jsonl`` into a PNG, with a smoothed line on top.

    Raises:
        InputError: the run has no metrics yet.
        OSError: a file cannot be read or written.
    """
    # Imported here: drawing is the only thing that needs it, and it takes a while to load.
    from matplotlib.figure import Figure

    lines = [each for each in read_metrics(run_folder / JSONL_NAME) if each["train/CE loss"] is not None]
    if not lines:
        raise InputError(f"{run_folder / JSONL_NAME}: found no training loss to draw")
    tokens = np.array([each["throughput/total tokens"] for each in lines]) / 1e6
    loss = np.array([each["train/CE loss"] for each in lines])

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, loss, color="#9ecae1", linewidth=0.8, label="each step")
    axes.plot(tokens, _smoothed(loss), color="#08519c", linewidth=1.8, label="running mean")
    axes.set(title=title, xlabel="training tokens (millions)", ylabel="cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with write_then_rename(image) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _smoothed(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """A centred running mean over ``share`` of the values, narrower at both ends."""
    reach = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
