"""Where a run stands in its stages."""

from collections.abc import Sequence

from hybrid_jax.expressivity.config import StageConfig


class Curriculum:
    """Goes from stage to stage, by steps or by accuracy.

    Attributes:
        num_stages_done: how many stages are over.
        num_steps: taken in the present stage.
    """

    def __init__(self, stages: Sequence[StageConfig], advance_at: float | None) -> None:
        self._stages = tuple(stages)
        self._advance_at = advance_at
        self.num_stages_done = 0
        self.num_steps = 0

    @property
    def length(self) -> int | None:
        """Of the programs to learn from next; None when training is over."""
        over = self.num_stages_done == len(self._stages)
        return None if over else self._stages[self.num_stages_done].length

    def advance(self, num_steps: int, accuracy: float) -> None:
        """Count ``num_steps`` at the present length, after which accuracy there is ``accuracy``."""
        self.num_steps += num_steps
        mastered = self._advance_at is not None and accuracy >= self._advance_at
        if mastered or self.num_steps >= self._stages[self.num_stages_done].num_steps:
            self.num_stages_done += 1
            self.num_steps = 0
