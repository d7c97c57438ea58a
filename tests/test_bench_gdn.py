"""The benchmark of the gated delta rule runs from end to end, interpreted, where there is no GPU and little else."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from scripts.gdn_bench import conformance, inputs, programs
from scripts.gdn_bench.report import Report, attempt
from scripts.gdn_bench.settings import Settings
from scripts.gdn_bench.timing import Clock, floors
from tests import fake_torch
from tests.environment import ROOT

BROUGHT_BY_JAX = {"jax", "jaxtyping", "numpy", "scipy", "ml_dtypes"}
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def bench(*flags: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as in the tests' own process
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, str(ROOT / "scripts/bench_gdn.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, cwd="/")


@pytest.fixture
def bare(tmp_path):
    """A folder for PYTHONPATH: of our dependencies only jax is there, with jaxtyping; and PyTorch."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {each.split(">")[0].replace("-", "_") for each in dependencies} - BROUGHT_BY_JAX
    missing = names | {"orbax", "absl", "yaml", "hybrid_jax", "transformers"}
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BARE.format(missing=missing))
    (folder / "torch.py").write_text(fake_torch.TORCH)
    return folder


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for wheel, files in fake_torch.WHEELS.items():
        with zipfile.ZipFile(folder / wheel, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    return folder


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the kernels need jax 0.11")
def test_all_of_it_runs_interpreted(bare, wheels, tmp_path):
    output = tmp_path / "new/figures.json"
    done = bench("--interpret", "--wheels", str(wheels), "--output", str(output), path=bare)
    assert done.returncode == 0, done.stderr + done.stdout
    figures = json.loads(output.read_text())
    assert figures["problems"] == []
    assert figures["fla"] == "0.4.9"

    checked = figures["conformance"]
    assert all(row["same twice"] for row in checked)
    cases = {row["case"] for row in checked}
    assert cases > {"2 seeds", "one token", "decoding", "decay e^-60", "one key throughout"}
    assert all(0 < row["o"] < 4e-2 for row in checked)

    timed = {row["by"]: row for row in figures["speed"]}
    assert list(timed) == ["mosaic_gpu", "fla", "flash_qla", "flashinfer", "xla"]
    assert all(row["forward ms"] > 0 for row in timed.values())
    both = {by for by, row in timed.items() if "with backward ms" in row}
    assert both == {"mosaic_gpu", "fla", "xla"}
    assert timed["flash_qla"]["failed"] == ["with backward: RuntimeError: wrong with this Triton"]
    assert timed["flash_qla"]["failed"][0] in done.stdout
    # q, k, v, d_o and gates of 64 tokens, and what the fake says it allocated.
    assert timed["fla"]["GiB"] * 2**30 == (2 << 20) + 64 * (2 * 2 * (32 + 64) + 2 * 4)
    assert {row["by"] for row in figures["decoding"]} == {"mosaic_gpu", "xla"}

    errors = {(row["input"], row["by"]): row for row in figures["accuracy"]}
    assert errors["ordinary", "fla"]["dg"] < errors["ordinary", "mosaic_gpu"]["dg"] < 1e-2
    assert errors["one key throughout", "mosaic_gpu"]["o"] < 4e-2
    assert errors["ordinary", "flashinfer"]["o"] < 5e-3


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="says what machines without a GPU say")
def test_without_a_gpu_it_says_so(tmp_path):
    for flags, said in (
        ((), "--interpret runs without"),
        (("--wheels", str(tmp_path)), f"found no *.whl in {tmp_path}"),
    ):
        done = bench(*flags)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_row_that_failed_loses_no_other(tmp_path, capsys):
    report = Report(tmp_path / "figures.json", {"device": "none"})
    report.begin("speed", "Milliseconds", ["by", "ms"])
    for by, work in (("one", lambda: 2.0), ("two", lambda: 1 / 0), ("three", lambda: 3.0)):
        found, reasons = attempt("forward", work)
        report.row({"by": by, "ms": found, "failed": reasons})
        written = json.loads((tmp_path / "figures.json").read_text())["speed"]
        assert written[-1]["by"] == by
    assert "forward: ZeroDivisionError: division by zero" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x, call: np.where(x > 0, np.nan, x), "o is off by nan, expected at most 5e-03"),
        (lambda x, call: 1.01 * x, "o is off by 1.0e-02, expected at most 5e-03"),
        (lambda x, call: x + 1e-6 * (call % 2), "two runs of one program differ"),
        (lambda x, call: x, None),
    ],
)
def test_wrong_kernels_are_found(change, fault, monkeypatch):
    calls = []

    def kernels(program, arrays):
        calls.append(program)
        found = programs.by_definition(program, arrays)
        return found | {"o": change(found["o"], len(calls))}

    monkeypatch.setattr(conformance, "by_kernels", kernels)
    report = Report(None, {})
    case = next(each for each in conformance.cases(Settings(interpret=True)) if each.name == "decoding")
    monkeypatch.setattr(conformance, "cases", lambda settings: [case])
    conformance.conformance(Settings(interpret=True), report)
    assert report.problems == ([] if fault is None else [f"8 / 64, decoding: {fault}"])


def test_inputs_are_what_they_say():
    ids = np.concatenate(
        [
            inputs.make_inputs(seed, 8, 450, (1, 1), (8, 8), documents=True)["segment_ids"]
            for seed in range(0, 20, 2)
        ]
    )
    ends = np.flatnonzero(np.diff(ids)) % ids.shape[1]
    assert {63, 0, 1} <= {int(each) % 64 for each in ends}, (
        "no documents end at, before or after a chunk's edge"
    )
    chunks = ids[:, :448].reshape(-1, 7, 64)
    assert (chunks == 0).all(-1).any(), "no chunk is all padding"
    ordinary = inputs.make_inputs(0, 2, 30, (1, 2), (8, 16))
    for name, change in (inputs.HARD | inputs.LASTING).items():
        hard = change(ordinary)
        for each, x in hard.items():
            assert x.shape == ordinary[each].shape, name
            assert x.dtype == ordinary[each].dtype, name
        assert any((hard[each] != ordinary[each]).any() for each in hard), name
    one_key = inputs.LASTING["one key throughout"](inputs.make_inputs(0, 1, 5, (1, 1), (8, 8)))
    assert (one_key["k"] == one_key["k"][:, :1]).all()


def test_a_slow_call_is_timed_less_often(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def calls(seconds):
        made = []

        def work(i):
            made.append(i)
            now[0] += seconds

        assert Clock(10).median(work, lambda _: None) == pytest.approx(1e3 * seconds)
        return made

    assert len(calls(0.001)) == 12 * 3
    assert len(calls(1.0)) == 5 * 3
    assert calls(1.0)[:4] == [0, 1, 2, 0]


def test_floors_of_olmo_hybrid():
    """Forward memory, backward tensor cores: 65,536 tokens, 30 heads of 96 / 192."""
    found = floors(65_536, 96, 192, 30)
    assert found["forward"] == pytest.approx(0.53, abs=0.01)
    assert found["with backward"] == pytest.approx(1.9, abs=0.05)
