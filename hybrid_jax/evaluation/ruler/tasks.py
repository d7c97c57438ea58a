"""RULER's tasks: prompts with the words, counts and repetitions of its published settings.

Each is a function of a random generator, the amount of filler, the prompt's length in tokens and the texts. What is to
be found is drawn first, so that prompts of different sizes from equal generators ask the same.

Source: github.com/NVIDIA/RULER, ``scripts/synthetic.yaml`` and ``scripts/data/synthetic``. Its two tasks of question
answering are left out: they are made of data sets. Below 4,096 tokens, the least of its published lengths, lists of
words repeat less, as in its code; what is shorter still is ours.
"""

import itertools
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from hybrid_jax.evaluation.ruler.texts import Texts

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
# Needles lie at this many evenly spaced depths of the haystack, at most one at each.
_NUM_DEPTHS = 40
# The shortest length of RULER's own settings.
_PUBLISHED_FROM = 4096
# As many coded words show the most frequent ones in their order.
_FEWEST_CODED_WORDS = 40


class Sample(NamedTuple):
    """A question.

    Attributes:
        prompt: a text that ends where the answer begins.
        answers: strings, each of which a full answer contains.
        reply: a full answer as it would continue the prompt, with the blank before it.
    """

    prompt: str
    answers: tuple[str, ...]
    reply: str


class Task(NamedTuple):
    """How samples are written, and most tokens that an answer may take."""

    write: Callable[[Random, int, int, Texts], Sample]
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Needles:
    """Needles in a haystack: values hidden under keys, of which some are asked for.

    Attributes:
        haystack: one line repeated, prose, or more needles.
        keys: what stands for a key.
        values: what stands for a value.
        num_keys: how many keys have needles.
        num_values: needles of each key.
        num_queries: keys that are asked for.
    """

    haystack: Literal["noise", "prose", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1

    def write(self, random: Random, size: int, length: int, texts: Texts) -> Sample:
        """Write a sample with ``size`` lines or sentences around the needles."""
        keys: dict[str, list[str]] = {}
        while len(keys) < self.num_keys:
            keys[self._key(random, texts)] = [self._value(random) for _ in range(self.num_values)]
        needles = [self._needle(key, value) for key, values in keys.items() for value in values]
        random.shuffle(needles)
        queries = random.sample(list(keys), self.num_queries)
        depths = sorted(random.sample(range(_NUM_DEPTHS), len(needles)))
        if self.haystack == "prose":
            filler, separator = [texts.sentences[i % len(texts.sentences)] for i in range(size)], " "
        elif self.haystack == "noise":
            filler, separator = [_NOISE] * size, "\n"
        else:
            others = ((self._key(random, texts), self._value(random)) for _ in range(size))
            filler, separator = [self._needle(*other) for other in others], "\n"
        places = [round(size * depth / (_NUM_DEPTHS - 1)) for depth in depths]
        context = separator.join(_insert(filler, needles, places))

        answers = tuple(value for query in queries for value in keys[query])
        several = len(answers) > 1
        kind = self.values if several else self.values.removesuffix("s")
        some, are = ("Some", "are") if several else ("A", "is")
        asked, all_of = _listed(queries), "are all" if several else "is"
        prompt = (
            f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will "
            f"quiz you about the {kind} afterwards.\n{context}\nWhat {all_of} the special magic {kind} for {asked} "
            f"mentioned in the provided text? The special magic {kind} for {asked} mentioned in the provided text {are}"
        )
        return Sample(prompt, answers, f" {_listed(answers)}.")

    def _key(self, random: Random, texts: Texts) -> str:
        if self.keys == "uuids":
            return _uuid(random)
        return f"{random.choice(texts.adjectives)}-{random.choice(texts.nouns)}"

    def _value(self, random: Random) -> str:
        return _uuid(random) if self.values == "uuids" else str(random.randint(1_000_000, 9_999_999))

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.values, key=key, value=value)


def variable_tracking(random: Random, size: int, length: int, texts: Texts) -> Sample:
    """A value is passed on from variable to variable between ``size`` lines of noise: which have it?

    A shorter chain comes before it, with its answer; below 4,096 tokens without the noise that RULER's has.
    """
    chain = _names(random, 5)
    example = _tracking(random, _names(random, 3), 10 if length >= _PUBLISHED_FROM else 0)
    question = _tracking(random, chain, size)
    return Sample(f"{example.prompt}{example.reply}\n\n{question.prompt}", question.answers, question.reply)


def common_words(random: Random, size: int, length: int, texts: Texts) -> Sample:
    """A list of words, a few of them often and ``size`` others seldom: which are the common ones?

    A shorter list comes before it, with its answer. Below 1,024 tokens three common words are asked for, not ten.
    """
    if length >= _PUBLISHED_FROM:
        num_common, num_seldom, example_counts, counts = 10, 30, (10, 3), (30, 3)
    elif length >= 1024:
        num_common, num_seldom, example_counts, counts = 10, 10, (3, 1), (6, 1)
    else:
        num_common, num_seldom, example_counts, counts = 3, 3, (3, 1), (6, 1)
    words = random.sample(texts.words, len(texts.words))
    example_words = random.sample(texts.words, num_common + num_seldom)
    example = _counting(random, example_words, num_common, *example_counts)
    question = _counting(random, words[: num_common + size], num_common, *counts)
    return Sample(f"{example.prompt}{example.reply}\n{question.prompt}", question.answers, question.reply)


def frequent_words(random: Random, size: int, length: int, texts: Texts) -> Sample:
    """Coded words, drawn after Zipf's law with exponent 2: which three are the most frequent, dots aside?"""
    num_words = size + _FEWEST_CODED_WORDS
    coded = ["..."]
    while len(coded) < max(4, length // 50):
        word = "".join(random.choices(string.ascii_lowercase, k=6))
        if word not in coded:
            coded.append(word)
    zeta_of_2 = 1.6449340668482264
    counts = [int(num_words / rank**2 / zeta_of_2) for rank in range(1, len(coded) + 1)]
    text = [word for word, count in zip(coded, counts, strict=True) for _ in range(count)]
    random.shuffle(text)
    prompt = (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        f"appeared coded words. {' '.join(text)}\nQuestion: Do not provide any explanation. Please ignore the dots "
        "'....'. What are the three most frequently appeared words in the above coded text? Answer: According to the "
        "coded text above, the three most frequently appeared words are:"
    )
    return Sample(prompt, tuple(coded[1:4]), f" {' '.join(coded[1:4])}")


# By RULER's names. Its settings at every length; the least length is what a task's frame takes.
TASKS = {
    "niah_single_1": Task(Needles(haystack="noise").write, 128),
    "niah_single_2": Task(Needles(haystack="prose").write, 128),
    "niah_single_3": Task(Needles(haystack="prose", values="uuids").write, 128),
    "niah_multikey_1": Task(Needles(haystack="prose", num_keys=4).write, 128),
    "niah_multikey_2": Task(Needles(haystack="needles").write, 128),
    "niah_multikey_3": Task(Needles(haystack="needles", keys="uuids", values="uuids").write, 128),
    "niah_multivalue": Task(Needles(haystack="prose", num_values=4).write, 128),
    "niah_multiquery": Task(Needles(haystack="prose", num_keys=4, num_queries=4).write, 128),
    "vt": Task(variable_tracking, 30),
    "cwe": Task(common_words, 120),
    "fwe": Task(frequent_words, 50),
}


def _tracking(random: Random, names: list[str], num_lines: int) -> Sample:
    value = str(random.randint(10_000, 99_999))
    links = [
        f"VAR {names[0]} = {value}",
        *(f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(names)),
    ]
    places = sorted(random.randint(0, num_lines) for _ in links)
    context = "\n".join(_insert([_NOISE] * num_lines, links, places))
    # The mistyped word is RULER's.
    prompt = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
        f"{context}\nQuestion: Find all variables that are assigned the value {value} in the text above. Answer: "
        f"According to the chain(s) of variable assignment in the text above, {len(names)} variables are assgined the "
        f"value {value}, they are:"
    )
    return Sample(prompt, tuple(names), f" {' '.join(names)}")


def _counting(random: Random, words: list[str], num_common: int, often: int, seldom: int) -> Sample:
    common = words[:num_common]
    listed = common * often + words[num_common:] * seldom
    random.shuffle(listed)
    prompt = (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        f"appear most often.\n{_numbered(listed)}\nQuestion: What are the {num_common} most common words in the above "
        f"list? Answer: The top {num_common} words that appear most often in the list are:"
    )
    return Sample(prompt, tuple(common), f" {_numbered(common)}")


def _insert(filler: list[str], parts: list[str], places: list[int]) -> list[str]:
    """``filler`` with each of ``parts`` before the element of its place; places ascend."""
    found, start = [], 0
    for part, place in zip(parts, places, strict=True):
        found += [*filler[start:place], part]
        start = place
    return found + filler[start:]


def _names(random: Random, num_letters: int) -> list[str]:
    """Five different names of variables."""
    names: dict[str, None] = {}
    while len(names) < 5:
        names["".join(random.choices(string.ascii_uppercase, k=num_letters))] = None
    return list(names)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


def _listed(parts: list[str] | tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def _uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))
