"""Models as lm-eval (EleutherAI's lm-evaluation-harness, extra ``eval``) sees them, and its tasks run on them.

Tokenization, truncation, windows of rolling log-likelihoods and stop sequences are as in lm-eval's own transformers
backend (``lm_eval/models/huggingface.py``), so that both give the same numbers.
"""

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_jax.data.tokenizer import (
    load_tokenizer,
    load_tokenizer_config,
    named_special_tokens,
    special_token_id,
)
from hybrid_jax.errors import InputError
from hybrid_jax.evaluation.bits_per_byte import pieces
from hybrid_jax.evaluation.continuations import score_continuations
from hybrid_jax.evaluation.inputs import check_tokenizer
from hybrid_jax.evaluation.token_scores import Stretch, TokenScores, power_of_two
from hybrid_jax.generation import stream
from hybrid_jax.models import CausalLM

# What a task gets that does not say how many tokens to make.
_MAX_NEW_TOKENS = 256
# Tokens made between two looks for stop sequences.
_BURST = 16
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p")


def lm_eval_model(
    model: CausalLM,
    tokenizer: Path,
    *,
    max_length: int | None = None,
    window: int = 512,
    batch_size: int = 8,
) -> Any:
    """A ``lm_eval.api.model.TemplateLM`` that answers with ``model``.

    Args:
        model: the model.
        tokenizer: its tokenizer file with ``tokenizer_config.json`` beside it, or their folder.
        max_length: most tokens read for an answer; what comes before is left out. ``max_position_embeddings`` if not
            given.
        window: tokens of a row read at once.
        batch_size: rows read or continued at once.

    Raises:
        InputError: lm-eval is not installed, the tokenizer has ids that the model has not or no ``eos_token``, or a
            number is below 1.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise _missing() from error

    class HybridJaxLM(_Answers, TemplateLM):
        """The answers, under the class that lm-eval asks for."""

    return HybridJaxLM(model, tokenizer, max_length, window, batch_size)


def run_tasks(
    lm: Any,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-eval, whose data the ``datasets`` library finds or downloads.

    Args:
        lm: what ``lm_eval_model`` returned, or another of lm-eval's models.
        tasks: names, or patterns such as ``arc_*``.
        folder: of YAML files that describe tasks, to take them from in place of lm-eval's own.
        num_fewshot: examples before each question; the task's own number if not given.
        limit: questions of each task, the first ones; all if not given.

    Returns:
        lm-eval's results: ``["results"][task]["acc,none"]`` and the like, ``["samples"][task]`` with each question.

    Raises:
        InputError: lm-eval is not installed, or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise _missing() from error

    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: found no such folder, expected one with task files (.yaml)")
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    names: list[str] = []
    for task in tasks:
        matched = manager.match_tasks([task])
        if not matched:
            near = difflib.get_close_matches(task, manager.all_tasks)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {len(manager.all_tasks)}"
            raise InputError(f"tasks: found {task!r}, which lm-eval does not know; {hint}")
        names += matched
    # Its bootstrap would fork processes, which may hang beside the threads of JAX.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    return simple_evaluate(
        lm, tasks=names, num_fewshot=num_fewshot, limit=limit, task_manager=manager, bootstrap_iters=1000
    )


def _missing() -> InputError:
    return InputError("lm_eval: not installed, needed for its tasks: pip install 'hybrid-jax[eval]'")


class _Answers:
    """What lm-eval asks of a ``TemplateLM``; mixed in before that class, which is only there with the extra."""

    def __init__(
        self, model: CausalLM, tokenizer: Path, max_length: int | None, window: int, batch_size: int
    ) -> None:
        super().__init__()
        for name, value in {"max_length": max_length, "window": window, "batch_size": batch_size}.items():
            if value is not None and value < 1:
                raise InputError(f"{name}: found {value}, expected at least 1")
        self._model = model
        self._tokenizer = load_tokenizer(tokenizer)
        check_tokenizer(self._tokenizer, model.config)
        named = named_special_tokens(load_tokenizer_config(tokenizer))
        if "eos_token" not in named:
            raise InputError(
                f"{tokenizer}: found no eos_token in a tokenizer_config.json beside it, expected one"
            )
        self._eos_token_id = special_token_id(self._tokenizer, named["eos_token"])
        self._prefix = named.get("bos_token", named["eos_token"])
        self._special_tokens = {
            token.content: number for number, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._window, self._batch_size = window, batch_size
        self.max_length = model.config.max_position_embeddings if max_length is None else max_length

    @property
    def eot_token_id(self) -> int:
        return self._eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return special_token_id(self._tokenizer, self._prefix)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; with the special tokens that the tokenizer adds, unless the text begins with one already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix)
        return self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The sum of each continuation's log-probabilities, and whether all its tokens are the likeliest."""
        stretches = []
        for (_context, text), context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise InputError(
                    f"continuation {text[:80]!r}: found {len(continuation)} tokens, expected 1 to max_length "
                    f"{self.max_length}"
                )
            ids = np.array((context + continuation)[-(self.max_length + 1) :], np.int32)
            stretches.append(Stretch(ids, len(ids) - len(continuation)))
        return [
            (float(score.log_probs.sum(dtype=np.float64)), bool(score.greedy.all()))
            for score in self._score(stretches)
        ]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The sum of a whole text's log-probabilities, in windows of ``max_length`` (``pieces``)."""
        stretches, owners = [], []
        for number, request in enumerate(requests):
            ids = np.array([self.prefix_token_id, *self.tok_encode(request.args[0])], np.int32)
            found = list(pieces(ids, self.max_length))
            stretches += found
            owners += [number] * len(found)
        sums = np.zeros(len(requests))
        np.add.at(sums, owners, [score.log_probs.sum(dtype=np.float64) for score in self._score(stretches)])
        return sums.tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop sequence, without it."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        texts: dict[int, str] = {}
        for numbers in groups.values():
            found = self._continue([requests[i].args[0] for i in numbers], requests[numbers[0]].args[1])
            texts.update(zip(numbers, found, strict=True))
        return [texts[number] for number in range(len(requests))]

    def _score(self, stretches: Sequence[Stretch]) -> list[TokenScores]:
        return score_continuations(self._model, stretches, window=self._window, batch_size=self._batch_size)

    def _continue(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Continue texts that are to be continued in the same way, like lengths together."""
        from lm_eval.models.utils import (
            handle_stop_sequences,
            normalize_gen_kwargs,
            postprocess_generated_text,
        )

        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(settings, _MAX_NEW_TOKENS))
        eos = self._tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stops = handle_stop_sequences(kwargs.pop("until"), eos=eos)
        max_new_tokens = kwargs.pop("max_gen_toks")
        unknown = sorted(set(kwargs) - set(_SAMPLING))
        if unknown:
            expected = ", ".join(("until", "max_gen_toks", *_SAMPLING))
            raise InputError(f"generation_kwargs: found {unknown}, expected {expected}")
        longest = self.max_length - max_new_tokens
        if longest < 1:
            raise InputError(
                f"max_gen_toks: found {max_new_tokens}, expected less than max_length {self.max_length}"
            )
        sampling = {name: kwargs.get(name) for name in ("top_k", "top_p")}
        sampling["temperature"] = kwargs.get("temperature", 0.0) if kwargs["do_sample"] else 0.0

        prompts = [(self.tok_encode(text) or [self.prefix_token_id])[-longest:] for text in contexts]
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        texts: dict[int, str] = {}
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            made = self._make([prompts[i] for i in batch], max_new_tokens, sampling, stops, seed=first)
            for number, tokens in zip(batch, made, strict=True):
                text = self._tokenizer.decode(tokens)
                texts[number] = postprocess_generated_text(text, stops, None)
        return [texts[number] for number in range(len(prompts))]

    def _make(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        sampling: dict[str, Any],
        stops: Sequence[str],
        seed: int,
    ) -> list[list[int]]:
        """New tokens of a batch, until each row has a stop sequence."""
        num_rows = min(self._batch_size, power_of_two(len(prompts), at_least=1))
        rows = prompts + prompts[-1:] * (num_rows - len(prompts))
        special = [self._special_tokens[stop] for stop in stops if stop in self._special_tokens]
        stop_ids = {self.eot_token_id, *self._model.config.eos_token_ids, *special}
        made: list[list[int]] = [[] for _ in prompts]
        bursts = stream(
            self._model,
            rows,
            max_new_tokens,
            eos_token_id=sorted(stop_ids),
            seed=seed,
            burst_size=_BURST,
            **sampling,
        )
        for burst in bursts:
            for row, new in zip(made, burst, strict=False):
                row.extend(new)
            if all(row[-1] in stop_ids or _has_any(self._tokenizer.decode(row), stops) for row in made):
                break
        return made


def _has_any(text: str, stops: Sequence[str]) -> bool:
    return any(stop and stop in text for stop in stops)
