"""Samples of a task that fill a length, counted with the tokenizer of the model that will read them."""

from collections.abc import Callable
from random import Random

from tokenizers import Tokenizer

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler.tasks import TASKS, Sample
from hybrid_jax.evaluation.ruler.texts import Texts


def make_samples(
    task: str, tokenizer: Tokenizer, length: int, num_samples: int, texts: Texts, *, seed: int = 0
) -> list[Sample]:
    """Write samples that with the task's longest answer take at most ``length`` tokens, and little less.

    Sample i is the same whatever ``num_samples`` is.

    Args:
        task: one of ``TASKS``.
        tokenizer: of the model.
        length: tokens, those of the answer included.
        num_samples: how many.
        texts: haystack and words.
        seed: for everything that is drawn.

    Raises:
        InputError: an unknown task, ``num_samples`` below 1, or a length that the task's frame does not leave room in.
    """
    if task not in TASKS:
        raise InputError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    if num_samples < 1:
        raise InputError(f"num_samples: found {num_samples}, expected at least 1")
    write, max_new_tokens = TASKS[task]
    longest = length - max_new_tokens

    def written(number: int, size: int) -> Sample:
        return write(Random(f"{seed} {task} {length} {number}"), size, length, texts)

    def num_tokens(sample: Sample) -> int:
        return len(tokenizer.encode(sample.prompt).ids)

    def fitting(number: int, size: int) -> Sample:
        while num_tokens(sample := written(number, size)) > longest:
            if size == 0:
                needed = num_tokens(sample) + max_new_tokens
                raise InputError(
                    f"length: found {length} tokens, expected at least {needed} for {task}, whose frame takes "
                    f"{needed - max_new_tokens} and answer {max_new_tokens}"
                )
            size -= max(1, size // 64)
        return sample

    size = _largest(lambda size: num_tokens(written(0, size)) <= longest, at_most=max(length, 0))
    return [fitting(number, size) for number in range(num_samples)]


def _largest(fits: Callable[[int], bool], at_most: int) -> int:
    """The largest size that fits, or 0; what is smaller than one that fits, fits."""
    smallest_unfit = 8
    while smallest_unfit <= at_most and fits(smallest_unfit):
        smallest_unfit *= 2
    low, high = 0, min(smallest_unfit, at_most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
