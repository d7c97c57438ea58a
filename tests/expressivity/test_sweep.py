"""Sweeps with runs that are made up: order, resuming, other configurations."""

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity import sweep as sweeps
from hybrid_jax.expressivity.results import Run, read_results
from tests.expressivity.small import made_up, small_sweep, small_task


@pytest.fixture
def done(monkeypatch) -> list[Run]:
    """The runs that were done; the fourth is killed."""
    runs: list[Run] = []

    def train(sweep, run):
        runs.append(run)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return made_up(run)

    monkeypatch.setattr(sweeps, "train", train)
    return runs


def sweep_of_six(folder, **overrides):
    own = {"architectures": ("transformer", "gdn_neg"), "seeds": (0, 1, 2)}
    return small_sweep(folder, tasks={"recall": small_task(**own | overrides)})


def test_runs_are_all_combinations_with_equal_programs_side_by_side(tmp_path):
    config = sweep_of_six(tmp_path, learning_rates=(1e-3, 3e-3), decays=("cosine", "constant"))
    runs = sweeps.runs_of(config)
    assert len(runs) == len(set(runs)) == 2 * 2 * 2 * 3
    assert [run.architecture for run in runs] == ["transformer"] * 12 + ["gdn_neg"] * 12


def test_a_killed_sweep_loses_only_the_run_it_was_on(tmp_path, done):
    config, told = sweep_of_six(tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(config, told.append)
    kept = read_results(tmp_path / "results.jsonl")
    assert [result.run for result in kept] == done[:3] == sweeps.runs_of(config)[:3]
    assert told == kept

    results = sweeps.run_sweep(config, told.append)
    assert done[4:] == sweeps.runs_of(config)[3:]
    assert {result.run for result in results} == set(sweeps.runs_of(config))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "results.jsonl"]

    sweeps.run_sweep(config, told.append)
    assert len(done) == 4 + 3


def test_runs_may_be_added_to_a_folder(tmp_path, done):
    config = sweep_of_six(tmp_path, architectures=("transformer",))
    sweeps.run_sweep(config, lambda result: None)
    more = sweep_of_six(tmp_path, architectures=("gdn_neg",), seeds=(7,))
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(more, lambda result: None)
    assert [result.run.seed for result in sweeps.run_sweep(more, lambda result: None)] == [7]
    assert len(read_results(tmp_path / "results.jsonl")) == 4


def test_results_of_another_configuration_are_refused(tmp_path, done):
    sweeps.run_sweep(small_sweep(tmp_path), lambda result: None)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"config\.yaml: .* batch_size: found 8, the folder has 4"):
        sweeps.run_sweep(small_sweep(tmp_path, batch_size=8), lambda result: None)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_folder_without_results_is_free(tmp_path, monkeypatch):
    def fails(sweep, run):
        raise InputError("too short")

    monkeypatch.setattr(sweeps, "train", fails)
    with pytest.raises(InputError, match="too short"):
        sweeps.run_sweep(small_sweep(tmp_path), lambda result: None)
    monkeypatch.setattr(sweeps, "train", lambda sweep, run: made_up(run))
    assert sweeps.run_sweep(small_sweep(tmp_path, batch_size=8), lambda result: None)
    assert "batch_size: 8" in (tmp_path / "config.yaml").read_text()
