"""Cross-entropy, perplexity and bits per byte of documents; the last compares across tokenizers, gzip and xz."""

import gzip
import lzma
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer

from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.token_scores import Stretch, check_ids, score_stretches
from hybrid_jax.models import CausalLM

# Documents scored together: enough to fill rows, few enough that scores come while later ones are read.
_LUMP = 4096


class Document(NamedTuple):
    """A text to score.

    Attributes:
        name: where it comes from, for reports and messages.
        ids: its tokens, without any that mark its beginning or end.
        num_bytes: UTF-8 bytes of its text; None where only tokens are known.
    """

    name: str
    ids: Integer[np.ndarray, " n"]
    num_bytes: int | None


class TextScore(NamedTuple):
    """How well a model foretells a text, or several.

    Attributes:
        name: of the text.
        nats: -log p, summed over the tokens.
        num_tokens: how many were scored.
        num_bytes: UTF-8 bytes of the text they stand for; None where they are not known.
    """

    name: str
    nats: float
    num_tokens: int
    num_bytes: int | None

    @property
    def bits_per_byte(self) -> float | None:
        """None where the number of bytes is not known."""
        return None if self.num_bytes is None else self.nats / math.log(2) / self.num_bytes

    @property
    def cross_entropy(self) -> float:
        """Mean nats per token."""
        return self.nats / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Exp of the cross-entropy, of tokens; infinite where a float cannot hold it."""
        return math.exp(self.cross_entropy) if self.cross_entropy < 709 else math.inf


def score_documents(
    model: CausalLM,
    documents: Iterable[Document],
    start_token_id: int,
    *,
    max_length: int | None = None,
    window: int = 512,
    batch_size: int = 8,
) -> Iterator[TextScore]:
    """Score every token of every document, each given all of the document before it.

    Each document stands on its own behind ``start_token_id``; its end is not scored. How documents are batched and
    read (``window``, ``batch_size``) decides speed and memory only. With ``max_length``, a document is cut into
    pieces of that many tokens, as lm-eval does: a piece is given the one token before it, and the last reaches back
    so that it has the full length too.

    Args:
        model: what is scored.
        documents: in any number; some thousand are held at a time.
        start_token_id: what the model knows as the border of documents (its end-of-text token).
        max_length: most tokens before a scored one; None is all of them, or where positions are rotary
            ``max_position_embeddings``, beyond which they mean nothing to the model.
        window: tokens of a row read at once. Documents up to it are packed into rows, which is quickest.
        batch_size: rows read at once.

    Returns:
        An iterator over the documents' scores, in their order.

    Raises:
        InputError: an empty document, a token outside the vocabulary, a ``max_length``, ``window`` or ``batch_size``
            below 1.
    """
    for name, value in {"max_length": max_length, "window": window, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise InputError(f"{name}: found {value}, expected at least 1")
    config = model.config
    check_ids([start_token_id], config.vocab_size, "start_token_id")
    if max_length is None and config.is_rotary:
        max_length = config.max_position_embeddings
    return _scores(model, iter(documents), start_token_id, max_length, window, batch_size)


def check_document(document: Document, vocab_size: int) -> None:
    """Refuse what ``score_documents`` cannot score.

    Raises:
        InputError: the document is empty or has a token outside the vocabulary.
    """
    if not len(document.ids):
        raise InputError(f"{document.name}: found an empty document, expected at least one token")
    check_ids(document.ids, vocab_size, document.name)


def pooled(name: str, scores: Iterable[TextScore]) -> TextScore:
    """The score of all texts as one, in which longer ones count for more.

    Raises:
        InputError: there is none.
    """
    found = list(scores)
    if not found:
        raise InputError(f"{name}: found no document, expected at least one")
    sizes = [score.num_bytes for score in found]
    return TextScore(
        name=name,
        nats=math.fsum(score.nats for score in found),
        num_tokens=sum(score.num_tokens for score in found),
        num_bytes=None if None in sizes else sum(size for size in sizes if size is not None),
    )


def compressed_bits_per_byte(data: bytes) -> dict[str, float]:
    """Bits per byte of general-purpose compressors at their strongest on ``data``."""
    sizes = {
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(data) for name, size in sizes.items()}


def pieces(ids: Integer[np.ndarray, " n"], max_length: int | None) -> Iterator[Stretch]:
    """Stretches that score all of ``ids`` but the first once, each reading at most ``max_length`` tokens."""
    num_scored = len(ids) - 1
    longest = num_scored if max_length is None else max_length
    scored = 0
    while scored < num_scored:
        stop = min(scored + longest, num_scored)
        start = max(stop - longest, 0)
        yield Stretch(ids[start : stop + 1], scored + 1 - start)
        scored = stop


def _scores(
    model: CausalLM,
    documents: Iterator[Document],
    start_token_id: int,
    max_length: int | None,
    window: int,
    batch_size: int,
) -> Iterator[TextScore]:
    while lump := list(islice(documents, _LUMP)):
        stretches, owners = [], []
        for number, document in enumerate(lump):
            check_document(document, model.config.vocab_size)
            ids = np.concatenate([[start_token_id], document.ids]).astype(np.int32)
            found = list(pieces(ids, max_length))
            stretches += found
            owners += [number] * len(found)
        nats = np.zeros(len(lump))
        scores = score_stretches(model, stretches, window=window, batch_size=batch_size)
        np.subtract.at(nats, owners, [score.log_probs.sum(dtype=np.float64) for score in scores])
        for document, total in zip(lump, nats.tolist(), strict=True):
            yield TextScore(document.name, total, len(document.ids), document.num_bytes)
