"""The notebooks as committed: pairs in step, first cells as agreed, outputs that speak for themselves."""

import ast
import re
import sys

import jupytext
import nbformat
import pytest

from hybrid_jax.errors import InputError
from scripts import run_notebooks
from tests.environment import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 400_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])/(?:\w[\w.-]*/)+|\b[A-Z]:\\|file://")


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def shown_text(output):
    """All that an output says, pictures aside."""
    data = {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")}
    return "\n".join([output.get("text", ""), *map(str, data.values())])


def test_there_are_six_pairs():
    names = [path.stem for path in NOTEBOOKS]
    assert [int(name[:2]) for name in names] == list(range(1, 7))
    assert [path.stem for path in sorted(FOLDER.glob("*.py"))] == names


def test_pair_is_in_step(path, notebook):
    """To mend: jupytext --sync notebooks/*.ipynb."""
    script = jupytext.read(path.with_suffix(".py"), fmt="py:percent")
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]


def test_first_cell_installs_where_needed_and_second_imports(path, notebook):
    install, imports, *others = code_cells(notebook)
    assert install.source.count("%pip install --quiet") == 1
    assert 'if find_spec("hybrid_jax") is None:' in install.source
    statements = ast.parse(imports.source).body
    # In a try: what is no dependency.
    assert all(isinstance(each, ast.Import | ast.ImportFrom | ast.Try) for each in statements)
    late = [each for cell in others for each in ast.walk(ast.parse(cell.source))]
    assert not [each for each in late if isinstance(each, ast.Import | ast.ImportFrom)]


def test_runs_as_a_script_too(path):
    """The install's magic is a comment there."""
    compile(path.with_suffix(".py").read_text(encoding="utf-8"), path.name, "exec")


def test_was_run_from_top_to_bottom_without_a_complaint(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        each for each in outputs(notebook) if each.output_type == "error" or each.get("name") == "stderr"
    ]
    assert not cells[0].outputs  # nothing had to be installed
    assert any("image/png" in each.get("data", {}) for each in outputs(notebook))


def test_outputs_name_no_place_of_the_machine_they_come_from(notebook):
    found = [match[0] for each in outputs(notebook) for match in ABSOLUTE_PATH.finditer(shown_text(each))]
    assert not found


def test_is_small(path):
    assert path.stat().st_size < MAX_BYTES


def test_every_notebook_shows_what_its_text_speaks_of(path, notebook):
    """What a run that found results of an earlier one, or no torch, would leave out."""
    said = "\n".join(map(shown_text, outputs(notebook)))
    expected = {
        "04_train": "step 400/400",
        "05_expressivity": "state_tracking  transformer",
        "03_convert": "torch 2",
    }
    assert expected.get(path.stem, "") in said


def test_a_notebook_runs_in_a_copy_of_its_folder(tmp_path):
    source = tmp_path / "notebooks"
    source.mkdir()
    for name in ("a.py", "a.ipynb", "small.yaml"):
        (source / name).write_text("x = 1")
    script = run_notebooks.copied(source / "a.py", tmp_path / "place")
    assert sorted(path.name for path in script.parent.iterdir()) == ["a.py", "small.yaml"]
    (script.parent / "left.txt").write_text("")
    assert run_notebooks.copied(source / "a.py", tmp_path / "place") == script


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"missing\.py: found no such script, expected the \.py of a notebook"
    ):
        run_notebooks.copied(tmp_path / "missing.py", tmp_path)


def test_notebooks_are_not_kept_without_all_they_can_show(monkeypatch):
    monkeypatch.setattr(run_notebooks, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["run_notebooks.py", "--keep"])
    with pytest.raises(InputError, match="--keep: found no torch and no transformers"):
        run_notebooks.main()
