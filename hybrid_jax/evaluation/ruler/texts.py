"""What RULER's prompts are made of: sentences to hide things between, and words."""

import re
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from wonderwords import RandomWord

from hybrid_jax.errors import InputError

_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Texts:
    """Sentences of a haystack, and the word lists that RULER takes from wonderwords.

    Attributes:
        sentences: of the haystack, in order.
        adjectives: for keys and values (``long-pencil``).
        nouns: likewise.
        words: nouns, adjectives and verbs, each once.
    """

    def __init__(self, haystack: str) -> None:
        """Split ``haystack`` into sentences; white space between words becomes one blank.

        Raises:
            InputError: it has no words.
        """
        if not haystack.strip():
            raise InputError("haystack: found no words, expected text")
        self.sentences = [" ".join(part.split()) for part in _END_OF_SENTENCE.split(haystack.strip())]

    @cached_property
    def digest(self) -> str:
        """What tells this haystack from others: 12 hexadecimal digits."""
        return sha256(" ".join(self.sentences).encode()).hexdigest()[:12]

    @cached_property
    def adjectives(self) -> list[str]:
        return _words_of("adjectives")

    @cached_property
    def nouns(self) -> list[str]:
        return _words_of("nouns")

    @cached_property
    def words(self) -> list[str]:
        return sorted({*self.nouns, *self.adjectives, *_words_of("verbs")})


def read_haystack(path: Path | None = None) -> str:
    """Prose for needles to lie in.

    Args:
        path: a UTF-8 text file. RULER's own is Paul Graham's essays, which may not be passed on; without a file it is
            the reference of the Python language, which comes with every Python.

    Raises:
        InputError: the file is not UTF-8.
        OSError: it cannot be read.
    """
    if path is None:
        # Imported here: half a megabyte that only RULER reads.
        from pydoc_data.topics import topics

        return "\n".join(topics.values())
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text: {error}") from error


def _words_of(kind: str) -> list[str]:
    return sorted(set(RandomWord().filter(include_categories=[kind])))
