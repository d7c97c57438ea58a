import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hybrid_jax.cli import run_script
from hybrid_jax.scaling import append_point
from scripts import fit_scaling
from tests.scaling.ladder import KNOWN, point, points

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "ladder.jsonl"
    few = {"60m": 57, "190m": 190, "600m": 548}
    better = type(KNOWN)(**{**vars(KNOWN), "B": 75.0})
    for law, architecture in ((KNOWN, "olmo3"), (better, "olmo_hybrid")):
        for each in points(law, 0.001, architecture, few, (0.5, 2.0, 8.0)):
            append_point(path, each)
    append_point(path, point(decayed=False, tokens=7))
    return path


@pytest.fixture
def script(monkeypatch, tmp_path):
    def run(*arguments):
        folder = ["--output-folder", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["fit_scaling.py", *map(str, arguments), *folder])
        run_script(fit_scaling.main)
        return tmp_path / "out"

    return run


def written(folder):
    for image in folder.glob("*.png"):
        assert image.read_bytes().startswith(PNG)
    return {each.name for each in folder.iterdir()}, json.loads((folder / "results.json").read_text())


def test_a_ladder_is_fitted(script, ladder, capsys):
    files, results = written(script(ladder, "--fit.num-bootstrap", 4))
    assert files == {"results.json", "fits.png", "frontier.png", "savings.png"}
    free, fixed = results["fits"]["free"], results["fits"]["fixed"]
    assert list(free) == ["olmo3", "olmo_hybrid"]
    assert results["corpus"] == "dolma3"
    assert (free["olmo3"]["num_points"], free["olmo3"]["horizons"]) == (9, [0.5, 2.0, 8.0])
    exponents = [free[name]["coefficients"][each]["value"] for name in free for each in ("alpha", "beta")]
    assert results["fixed_exponents"] == pytest.approx([np.mean(exponents)] * 2, abs=1e-3)
    assert fixed["olmo3"]["coefficients"]["alpha"]["value"] == results["fixed_exponents"][0]
    savings = free["olmo_hybrid"]["savings"][-1]
    assert savings["savings"]["value"] == pytest.approx((83.45 / 75) ** (1 / 0.213), rel=0.5)
    said = capsys.readouterr().out
    assert "left out: 1 points before the learning rate's decay" in said
    assert "fixed exponents: tokens of OLMo 3 over theirs" in said


def test_of_a_file_some_architectures_may_be_fitted(script, ladder, capsys):
    files, results = written(script(ladder, "--architectures", "olmo_hybrid", "--fit.num-bootstrap", 4))
    assert files == {"results.json", "fits.png", "frontier.png"}
    assert (list(results["fits"]["free"]), results["reference"]) == (["olmo_hybrid"], "olmo_hybrid")
    exponents = results["fits"]["free"]["olmo_hybrid"]["coefficients"]
    mean = (exponents["alpha"]["value"] + exponents["beta"]["value"]) / 2
    assert results["fixed_exponents"] == pytest.approx([mean] * 2, abs=1e-3)
    assert "out: results.json, fits.png, frontier.png\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "folder"),
    [
        ({"points": Path("runs/ladder/ladder.jsonl")}, "runs/ladder/fit"),
        ({"published": True}, "runs/scaling/published"),
        ({"quantization": True}, "runs/scaling/quantization"),
        ({"published": True, "output_folder": Path("here")}, "here"),
    ],
)
def test_each_kind_of_result_has_a_folder_of_its_own(asked, folder):
    assert fit_scaling.Options(**asked).folder == Path(folder)


def test_the_published_laws(script, capsys):
    files, results = written(script("--published"))
    assert files == {"results.json", "frontier.png", "savings.png"}
    assert [each["allowed"] for each in results["numbers"]].count(False) == 1
    assert len(results["contradictions"]) == 9
    said = " ".join(capsys.readouterr().out.split())
    assert "OLMo Hybrid │ token savings │ 1B │ 1.32 │ 1.542 │ 0.846 .. 2.799 │ yes │ 1.323" in said
    assert "Section 4.1 predicts 2.142 for the final hybrid" in said


def test_the_quantization_model(script, monkeypatch, capsys):
    def fewer(world, share):
        return fit_scaling_study(world, share, num_draws=2)

    fit_scaling_study = fit_scaling.study
    monkeypatch.setattr(fit_scaling, "study", fewer)
    files, results = written(script("--quantization"))
    assert files == {"results.json", "quantization.png"}
    assert len(results["studies"]) == 9
    # The joint law of the model is no sum, and the numbers are those of docs/scaling_laws.md.
    assert "R2 0.9807, largest error 7.3%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of: a file of points, --published, --quantization"),
        (["LADDER", "--published"], "expected one of: a file of points"),
        (["--published", "--target-loss", "2.5"], "found without a file of points"),
        (["LADDER", "--reference", "mamba"], "reference: found 'mamba', expected one of olmo3"),
        (["LADDER", "--sizes", "0"], "sizes: found (0.0,), expected finite numbers above 0"),
        (
            ["LADDER", "--reference", "gdn"],
            "reference: found gdn, which is not fitted, expected some of olmo3, ",
        ),
        (
            ["LADDER", "--architectures", "gdn"],
            "architectures: found gdn, which is not fitted, expected some of",
        ),
        (
            ["LADDER", "--fit.num-bootstrap", "2", "--target-loss", "0.5"],
            "target_loss: found 0.5, expected more than",
        ),
        (["none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(script, ladder, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        script(*(ladder if each == "LADDER" else each for each in arguments))
    assert end.value.code == 1
    # tyro puts some of them into a box.
    assert message in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
