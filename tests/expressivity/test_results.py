"""Best, median, table and figure from a file of results."""

import json

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.figure import draw
from hybrid_jax.expressivity.results import Run, markdown_table, read_results, summarize
from tests.environment import ROOT
from tests.expressivity.small import made_up


def run(seed, architecture="gdn_neg", task="state_tracking"):
    return Run(task, architecture, 1e-3, "cosine", seed)


RESULTS = [
    made_up(run(0), {4: 1.0, 8: 0.5}),
    made_up(run(1), {4: 0.25, 8: 0.75}),
    made_up(run(2), {4: 0.5, 8: 0.75}),
    made_up(run(0, "transformer"), {4: 0.5, 8: 0.25}),
    made_up(run(0, "hybrid_1to1_neg", "recall"), {4: 0.5, 8: 1.0}),
]


def write(path, results):
    path.write_text("".join(json.dumps(each.to_json()) + "\n" for each in results))
    return path


def test_results_survive_a_file(tmp_path):
    assert read_results(write(tmp_path / "results.jsonl", RESULTS)) == RESULTS
    assert read_results(tmp_path / "none.jsonl") == []


def test_best_is_by_the_hardest_length_then_the_next_and_the_median_by_each():
    summary = summarize(RESULTS)["state_tracking"]["gdn_neg"]
    assert summary.best.run.seed == 2
    assert summary.median == {4: 0.5, 8: 0.75}


def test_the_table_has_the_papers_numbers_beside_ours(tmp_path):
    table = markdown_table(read_results(write(tmp_path / "results.jsonl", RESULTS)))
    assert table.splitlines() == [
        "| state tracking | runs | 4 | 8 | paper, 128 |",
        "| --- | --- | --- | --- | --- |",
        "| transformer | 1 | 0.500 (0.500) | 0.250 (0.250) | 0.230 |",
        "| GDN (-) | 3 | 0.500 (0.500) | 0.750 (0.750) | 1.000 |",
        "",
        "| recall | runs | 4 | 8 | paper, 128 |",
        "| --- | --- | --- | --- | --- |",
        "| hybrid 1:1 (-) | 1 | 0.500 (0.500) | 1.000 (1.000) |  |",
    ]
    assert markdown_table(RESULTS[::-1]) == table, "whichever run ended first"


def test_the_figure_is_a_png(tmp_path):
    draw(RESULTS, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("line", ["{", "[]", '{"task": "recall"}'])
def test_a_line_that_is_no_result_is_refused(tmp_path, line):
    path = write(tmp_path / "results.jsonl", RESULTS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl:2: found .*, expected the result of a run"):
        read_results(path)


def test_the_table_in_the_documentation_is_that_of_the_results_beside_it():
    docs = ROOT / "docs"
    table = markdown_table(read_results(docs / "results" / "expressivity_cpu.jsonl"))
    assert table.strip() in (docs / "expressivity.md").read_text(encoding="utf-8")
