"""What a person sees: a bar on a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from hybrid_jax.training.progress import RunProgress


def shown(terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    with RunProgress(100, 20, console) as progress:
        progress.say("hello [world]")
        progress.advance(29)
        progress.report(30, loss=2.5, tokens_per_second=12_345.0, seconds_per_step=2.0)
    return file.getvalue()


def test_lines_where_there_is_no_terminal():
    assert shown(terminal=False).splitlines() == [
        "hello [world]",
        "step 30/100  loss 2.5000  12,345 tokens/s  0:02:20 left",
    ]


@pytest.mark.parametrize(
    "part", ["hello [world]", "30/100", "loss 2.5000  12,345 tokens/s  0:02:20 left", "\x1b["]
)
def test_bar_on_a_terminal(part):
    assert part in shown(terminal=True)
