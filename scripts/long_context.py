"""Extension to long text: ``long_context.py configs/long_context/cpu.yaml``.

OLMo Hybrid and its OLMo 3 twin are trained on short rows, each is extended by YaRN and by DRoPE, and the four are asked
RULER's questions by length and scored on held-out text by position. What is done is skipped, so that the same command
continues what was stopped; ``--help`` after the file lists every field.
"""

from rich.console import Console
from rich.table import Table

from hybrid_jax.cli import run_script
from hybrid_jax.evaluation.ruler.report import published_at, score_table
from hybrid_jax.long_context.config import LongContextConfig
from hybrid_jax.long_context.exam import Scores
from hybrid_jax.long_context.figure import draw
from hybrid_jax.long_context.study import run_study
from hybrid_jax.yaml_config import from_command_line


def main() -> None:
    """Run the study, print both tables, draw the figure, and say where it is."""
    config = from_command_line(LongContextConfig)
    console = Console(highlight=False, soft_wrap=True)
    scores = run_study(config, console.print)
    pretrained_length = config.pretraining.sequence_length
    console.print(score_table(scores.cells, published_at(pretrained_length)))
    console.print("(paper: at as many times the length of pretraining's rows, the mean over 13 tasks)\n")
    console.print(position_table(scores))
    image = config.output_folder / "long_context.png"
    draw(scores, pretrained_length, image)
    console.print(f"figure: {image}")


def position_table(scores: Scores) -> Table:
    """A row for each model, a column for the end of each range of positions; each begins where the one before ends."""
    ranges = next(iter(scores.positions.values()))
    title = "bits per byte of held-out text, by position up to"
    table = Table("model", *(f"{each.stop:,}" for each in ranges), title=title, title_justify="left")
    for name, positions in scores.positions.items():
        table.add_row(name, *(f"{each.bits_per_byte:.3f}" for each in positions))
    return table


if __name__ == "__main__":
    run_script(main)
