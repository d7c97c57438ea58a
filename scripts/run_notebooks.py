"""Run notebooks, each in a fresh kernel: ``make notebooks``. With ``--keep`` they keep what they show.

A notebook is a pair of files. What runs are the cells of the .py; the .ipynb beside it, which ``--keep`` writes anew,
has the same cells and their outputs. They run in a copy of their folder, so that nothing of earlier runs is shown, and
nothing is left.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
import tyro
from nbclient import NotebookClient
from rich.console import Console

from hybrid_jax.atomic import write_then_rename
from hybrid_jax.cli import run_script
from hybrid_jax.errors import InputError

_FOLDER = Path("notebooks")
# Shows the training of the model that others only load, and that whichever runs first trains.
_TRAINS = "04_train"
# Of which a notebook shows something where they are installed, and goes without where they are not.
_OPTIONAL = ("torch", "transformers")
# Without versions, so that what is kept depends on the cells alone.
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python"},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        notebooks: .py files; all in notebooks/ if not given.
        keep: write the .ipynb files.
    """

    notebooks: tyro.conf.Positional[tuple[Path, ...]] = ()
    keep: bool = False


def main() -> None:
    """Run one after the other, and say how long each took; the first error ends it."""
    options = tyro.cli(Options, description=__doc__)
    scripts = options.notebooks or tuple(sorted(_FOLDER.glob("*.py")))
    if not scripts:
        raise InputError(f"{_FOLDER}: found no notebooks, expected .py files: run from the repository's root")
    lacking = [name for name in _OPTIONAL if find_spec(name) is None]
    if options.keep and lacking:
        raise InputError(f"--keep: found no {' and no '.join(lacking)}, expected all that notebooks can show")
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as place:
        for script in sorted(scripts, key=lambda script: (script.stem != _TRAINS, script)):
            began = time.perf_counter()
            notebook = execute(copied(script, Path(place)))
            console.print(f"{script}: {time.perf_counter() - began:.0f} s")
            if options.keep:
                with write_then_rename(script.with_suffix(".ipynb")) as temporary:
                    nbformat.write(notebook, temporary)


def copied(script: Path, place: Path) -> Path:
    """The script in a copy of its folder in ``place``, without pictures and outputs.

    Raises:
        InputError: no such script.
    """
    if not script.is_file() or script.suffix != ".py":
        raise InputError(f"{script}: found no such script, expected the .py of a notebook")
    folder = place / script.parent.name
    shutil.copytree(script.parent, folder, ignore=shutil.ignore_patterns("*.ipynb", ".*"), dirs_exist_ok=True)
    return folder / script.name


def execute(script: Path) -> nbformat.NotebookNode:
    """The notebook of a percent script, run in the script's folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.NotebookNode()
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # it warns of TCP, which here stays on this machine
        resources={"metadata": {"path": str(script.parent)}},
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(_METADATA)
    return notebook


if __name__ == "__main__":
    run_script(main)
