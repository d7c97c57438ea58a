"""Samples of a task that fill a length, counted with the tokenizer of the model that will read them."""

from collections.abc import Callable, Iterator
from random import Random

from tokenizers import Tokenizer

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.ruler.tasks import TASKS, Sample
from hybrid_jax.evaluation.ruler.texts import Texts

# A sample can be drawn whose words take more tokens than others do; some other one fits.
_NUM_DRAWS = 20


def make_samples(
    task: str,
    tokenizer: Tokenizer,
    length: int,
    num_samples: int,
    texts: Texts,
    *,
    seed: int = 0,
    with_reply: bool = False,
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
        with_reply: count each sample's own reply and one token that ends it, as in texts to learn from, and not the
            longest answer.

    Raises:
        InputError: an unknown task, ``num_samples`` below 1, or a length that the task's frame does not leave room in.
    """
    if task not in TASKS:
        raise InputError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    if num_samples < 1:
        raise InputError(f"num_samples: found {num_samples}, expected at least 1")
    write, max_new_tokens = TASKS[task]

    def written(number: int, size: int, draw: int = 0) -> Sample:
        name = f"{seed} {task} {length} {number}"
        return write(Random(f"{name} {draw}" if draw else name), size, length, texts)

    def answer_tokens(sample: Sample) -> int:
        if not with_reply:
            return max_new_tokens
        return len(tokenizer.encode(sample.reply, add_special_tokens=False).ids) + 1

    def num_tokens(sample: Sample) -> int:
        return len(tokenizer.encode(sample.prompt).ids) + answer_tokens(sample)

    def fitting(number: int, size: int) -> Sample:
        for draw in range(_NUM_DRAWS):
            for smaller in _descending(size):
                if num_tokens(sample := written(number, smaller, draw)) <= length:
                    return sample
        needed, answer = num_tokens(sample), answer_tokens(sample)
        raise InputError(
            f"length: found {length} tokens, expected at least {needed} for {task}, whose frame takes "
            f"{needed - answer} and answer {answer}"
        )

    size = _largest(lambda size: num_tokens(written(0, size)) <= length, at_most=max(length, 0))
    return [fitting(number, size) for number in range(num_samples)]


def _descending(size: int) -> Iterator[int]:
    """Sizes to try, down to 0."""
    while size > 0:
        yield size
        size -= max(1, size // 64)
    yield 0


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
