"""Pictures of runs: what is drawn where, of whole runs and of those that lack something."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from hybrid_jax.errors import InputError
from hybrid_jax.training.curves import _smoothed, plot_loss, plot_runs
from hybrid_jax.training.metrics import JSONL_NAME
from tests.environment import ROOT, child_environment


def write_metrics(folder, losses, name="train/CE loss", **others):
    """A run; throughput is there at every second step."""
    folder.mkdir(exist_ok=True)
    lines = []
    for step, loss in enumerate(losses, start=1):
        line = {"step": step, name: loss, "throughput/total tokens": 64_000 * step}
        line |= {"optim/LR (group 0)": 0.1 * step, "optim/total grad norm": float(step)}
        line |= {"throughput/device/TPS": 1000.0 + step} if step % 2 == 0 else {}
        lines.append(line | {name: values[step - 1] for name, values in others.items()})
    (folder / JSONL_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def figure(monkeypatch) -> list[Figure]:
    """Keeps the figures that were drawn."""
    drawn = []
    savefig = Figure.savefig

    def keep(self, *arguments, **options):
        drawn.append(self)
        savefig(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def test_a_run_is_drawn_into_a_png(tmp_path):
    write_metrics(tmp_path, [5.0, None, 4.0, 3.5])
    plot_loss(tmp_path, tmp_path / "loss.png", title="test, $5 a day")
    image = (tmp_path / "loss.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n")
    assert len(image) > 5_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", JSONL_NAME]


def test_four_panels_of_two_runs(tmp_path, figure):
    runs = [write_metrics(tmp_path / "a", [5.0, None, 4.0, 3.5]), write_metrics(tmp_path / "b", [3.0, 2.0])]
    plot_runs(runs, tmp_path / "curves.png", smooth=0.0)
    panels = figure[0].axes
    found = [[line.get_xydata().tolist() for line in axes.lines[:2]] for axes in panels]
    steps = [[[step, value] for step, value in enumerate(values, 1)] for values in ([1, 2, 3, 4], [1, 2])]
    rates = [[[step, 0.1 * step] for step, _ in run] for run in steps]
    assert found[0] == [[[1, 5.0], [3, 4.0], [4, 3.5]], [[1, 3.0], [2, 2.0]]]
    np.testing.assert_allclose(np.concatenate(found[1]), np.concatenate(rates))
    assert found[2] == steps
    assert found[3] == [[[2, 1002], [4, 1004]], [[2, 1002]]]
    assert [axes.get_ylabel() for axes in panels] == [
        "cross-entropy (nats per token)",
        "learning rate",
        "gradient norm",
        "tokens/s of each device",
    ]
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == ["a", "b"]


def test_over_tokens_in_a_readable_unit(tmp_path, figure):
    plot_runs([write_metrics(tmp_path / "a", [5.0, 4.0])], tmp_path / "a.svg", x="tokens", smooth=0.0)
    assert figure[0].axes[2].get_xlabel() == "training tokens (thousands)"
    assert figure[0].axes[0].lines[0].get_xdata().tolist() == [64, 128]


def test_runs_of_one_name_are_told_apart(tmp_path, figure):
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
        write_metrics(tmp_path / parent / "run", [5.0, 4.0])
    plot_runs([tmp_path / "x/run", tmp_path / "y/run"], tmp_path / "curves.png")
    names = [text.get_text() for text in figure[0].legends[0].get_texts()]
    assert names == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]


def test_preference_loss_any_metric_and_a_panel_without_figures(tmp_path, figure):
    run = write_metrics(tmp_path / "a", [0.6], "train/DPO loss", **{"train/margin": [7.0]})
    plot_runs([run], tmp_path / "a.png")
    plot_runs([run], tmp_path / "a.png", metric="train/margin")
    assert [each.axes[0].get_ylabel() for each in figure] == ["DPO loss", "train/margin"]
    assert [each.axes[0].lines[0].get_ydata().tolist() for each in figure] == [[0.6], [7.0]]
    assert figure[0].axes[3].texts[0].get_text() == "not among the metrics"


def test_skipped_steps_are_marked(tmp_path, figure):
    skipped = {"optim/step skipped": [0, 1, 0, 1]}
    plot_runs([write_metrics(tmp_path / "a", [5.0, 9.0, 4.0, 3.5], **skipped)], tmp_path / "a.png")
    for panel, expected in ((0, [[2, 9.0], [4, 3.5]]), (2, [[2, 2], [4, 4]])):
        marks = figure[0].axes[panel].lines[-1]
        assert marks.get_label() == "step skipped"
        assert marks.get_xydata().tolist() == expected


def test_axes_show_what_matters(tmp_path, figure):
    losses = [50.0, *np.linspace(3, 2, 999)]
    norms = {"optim/total grad norm": [1.0] * 999 + [100.0]}
    plot_runs([write_metrics(tmp_path / "a", losses, **norms)], tmp_path / "a.png")
    loss, rate, norm, throughput = figure[0].axes
    assert loss.get_ylim() == pytest.approx((1.95, 3.04), abs=0.02), "the first step may leave the picture"
    assert [axes.get_yscale() for axes in (loss, rate, norm, throughput)] == [
        "linear",
        "linear",
        "log",
        "linear",
    ]
    # The geometric mean of 20 values 1 and one 100.
    assert norm.lines[1].get_ydata()[-1] == pytest.approx(100 ** (1 / 21))
    assert throughput.get_ylim()[0] == 0


def test_smoothing_keeps_a_straight_line_inside_and_a_constant_everywhere():
    line = np.arange(100.0)
    np.testing.assert_allclose(_smoothed(line, 0.04)[10:-10], line[10:-10])
    np.testing.assert_allclose(_smoothed(np.full(7, 3.0), 0.04), 3.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"metrics\.jsonl: no such file, expected the output folder of a training run"),
        (b"", r"metrics\.jsonl: found no train/CE loss or train/DPO loss to draw, only nothing"),
        (
            b'{"step": 1, "train/CE loss": null}\n',
            "found no train/CE loss or train/DPO loss to draw, only train/CE",
        ),
        (b"3\n", "found 3, expected a JSON object on each line"),
        (b"\xff\xfe\n", "is no text, expected a JSON object"),
    ],
)
def test_folders_without_metrics_are_refused(tmp_path, content, expected):
    if content is not None:
        (tmp_path / JSONL_NAME).write_bytes(content)
    with pytest.raises(InputError, match=expected):
        plot_runs([tmp_path], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"smooth": 1.5}, "smooth: found 1.5, expected 0 to 1"),
        ({"metric": "train/los"}, "found no train/los to draw, only .*train/CE loss"),
        ({"image": Path("curves.jpg")}, r"curves\.jpg: found ending '\.jpg', expected one of \.png"),
    ],
)
def test_bad_wishes_are_refused(tmp_path, options, expected):
    run = write_metrics(tmp_path / "a", [5.0, 4.0])
    with pytest.raises(InputError, match=expected):
        plot_runs([run], **{"image": tmp_path / "a.png", **options})


def script(*arguments):
    command = [sys.executable, str(ROOT / "scripts/plot.py"), *map(str, arguments)]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=120)


def test_script(tmp_path):
    runs = [write_metrics(tmp_path / name, [5.0, 4.0, 3.0]) for name in ("a", "b")]
    done = script(*runs, "--x", "tokens")
    assert (done.returncode, done.stdout) == (0, f"{runs[0] / 'curves.png'}\n"), done.stderr
    assert (runs[0] / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((), "expected output folders of runs"), (("/absent",), "error: /absent/metrics.jsonl: no such file")],
)
def test_script_refuses(arguments, expected):
    done = script(*arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
