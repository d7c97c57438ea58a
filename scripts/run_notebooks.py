"""Run notebooks, each in a fresh kernel: ``make notebooks``. With ``--keep`` they keep what they show.

A notebook is a pair of files. What runs are the cells of the .py; the .ipynb beside it, which ``--keep`` writes anew,
has the same cells and their outputs.
"""

import time
from dataclasses import dataclass
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
    console = Console(highlight=False, soft_wrap=True)
    for script in scripts:
        began = time.perf_counter()
        notebook = execute(script)
        console.print(f"{script}: {time.perf_counter() - began:.0f} s")
        if options.keep:
            with write_then_rename(script.with_suffix(".ipynb")) as temporary:
                nbformat.write(notebook, temporary)


def execute(script: Path) -> nbformat.NotebookNode:
    """The notebook of a percent script, run in the script's folder.

    Raises:
        InputError: no such script.
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    if not script.is_file() or script.suffix != ".py":
        raise InputError(f"{script}: found no such script, expected the .py of a notebook")
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
