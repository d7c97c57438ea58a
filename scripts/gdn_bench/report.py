"""Rows are printed as they come, and the file of figures is written anew with each: ending early loses none."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FAILED = "failed"


class Report:
    """What has been found so far.

    Args:
        output: JSON of it, if any.
        header: what the figures are of.
    """

    def __init__(self, output: Path | None, header: Row):
        self._output = output
        self._figures: Row = {**header, "problems": []}
        self._began = time.perf_counter()
        self._columns: list[str] = []
        self._write()

    @property
    def problems(self) -> list[str]:
        """What must not be, in words."""
        return self._figures["problems"]

    def say(self, line: str) -> None:
        print(line, flush=True)

    def begin(self, part: str, title: str, columns: list[str]) -> None:
        """A new table; rows of any other name than ``columns`` go to the file only."""
        self._part, self._columns = part, columns
        self._figures[part] = []
        self.say(f"\n{title}\n{self._line(dict.fromkeys(columns), dict(zip(columns, columns, strict=True)))}")

    def row(self, row: Row) -> None:
        """One line of the table, and why something is missing in it."""
        self._figures[self._part].append(row)
        self._write()
        self.say(f"{self._line(row, {name: _text(row.get(name)) for name in self._columns})}")
        for reason in row.get(FAILED, []):
            self.say(f"    {reason}")

    def problem(self, text: str) -> None:
        """Something that must not be; the command will end with exit code 1."""
        self.problems.append(text)
        self._write()
        self.say(f"    WRONG: {text}")

    def _line(self, row: Row, texts: dict[str, str]) -> str:
        cells = [
            f"{texts[name]:<{20}}" if number < 3 else f"{texts[name]:>{max(len(name), 7)}}"
            for number, name in enumerate(self._columns)
        ]
        return f"{time.perf_counter() - self._began:5.0f} s  " + "  ".join(cells)

    def _write(self) -> None:
        if self._output is None:
            return
        self._output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._output.with_name(f".{self._output.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._figures, indent=1), encoding="utf-8")
        os.replace(temporary, self._output)


def attempt(what: str, work: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What ``work`` returns and no reason; or None and the reason why it failed, in one line.

    Whatever fails, the rest is still worth measuring: out of memory, a shape that is not served, a compiler's fault.
    """
    try:
        return work(), []
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        return None, [f"{what}: {type(error).__name__}: {said}"[:300]]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if not abs(value) >= 0.1 else f"{value:.2f}"
    return "-" if value is None else str(value)
