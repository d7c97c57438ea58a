import json

import numpy as np
import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.training.curves import _smoothed, plot_loss
from hybrid_jax.training.metrics import JSONL_NAME


def write_metrics(folder, losses):
    lines = [
        {"step": step, "train/CE loss": loss, "throughput/total tokens": 64 * step}
        for step, loss in enumerate(losses, start=1)
    ]
    (folder / JSONL_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_drawn_into_a_png(tmp_path):
    write_metrics(tmp_path, [5.0, None, 4.0, 3.5])
    plot_loss(tmp_path, tmp_path / "loss.png", title="test")
    image = (tmp_path / "loss.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n")
    assert len(image) > 5_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", JSONL_NAME]


def test_a_run_without_a_loss_is_an_error(tmp_path):
    write_metrics(tmp_path, [None])
    with pytest.raises(InputError, match="found no training loss to draw"):
        plot_loss(tmp_path, tmp_path / "loss.png", title="test")
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_keeps_a_straight_line_inside_and_a_constant_everywhere():
    line = np.arange(100.0)
    np.testing.assert_allclose(_smoothed(line)[10:-10], line[10:-10])
    np.testing.assert_allclose(_smoothed(np.full(7, 3.0)), 3.0)
