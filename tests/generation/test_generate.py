"""Generation against the plainest loop there is: run the whole text again for every token."""

import importlib

import jax
import numpy as np
import pytest

from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.errors import InputError
from hybrid_jax.generation import decoding, generate, stream
from hybrid_jax.generation.generate import cache_capacity
from hybrid_jax.models import create_model

NEVER = -1
LENGTH = 48  # every text of these tests is shorter: the plain loop compiles once


@pytest.fixture(scope="module", params=["tiny", "tiny_olmo3"])
def model(request):
    """Weights large enough that the likeliest token leads clearly."""
    initial = create_model(ModelConfig.preset(request.param))
    return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 2 else leaf, initial)


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    return [random.integers(3, 256, length).tolist() for length in (5, 19, 1, 30)]


def plain(model, prompt, num_tokens):
    ids = list(prompt)
    for _ in range(num_tokens):
        padded = np.array([ids + [0] * (LENGTH - len(ids))])
        ids.append(int(model(padded).logits[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_those_of_the_plain_loop_alone_and_in_a_batch(model, prompts):
    expected = [plain(model, prompt, 10) for prompt in prompts]
    assert generate(model, prompts, max_new_tokens=10, eos_token_id=NEVER) == expected
    alone = [generate(model, [prompt], max_new_tokens=10, eos_token_id=NEVER)[0] for prompt in prompts]
    assert alone == expected


def test_a_prompt_longer_than_a_chunk_is_read_as_well(model, prompts, monkeypatch):
    whole = generate(model, prompts, max_new_tokens=6, eos_token_id=NEVER)
    monkeypatch.setattr(importlib.import_module("hybrid_jax.generation.generate"), "_MAX_CHUNK", 16)
    assert generate(model, prompts, max_new_tokens=6, eos_token_id=NEVER) == whole


def test_rows_end_at_their_own_end_token(model, prompts):
    free = generate(model, prompts, max_new_tokens=10, eos_token_id=NEVER)
    ends = [free[0][3], free[1][5]]
    stopped = generate(model, prompts, max_new_tokens=10, eos_token_id=ends)
    for row, whole in zip(stopped, free, strict=True):
        first = next((i for i, token in enumerate(whole) if token in ends), 9)
        assert row == whole[: first + 1]


def test_streaming_gives_the_same_in_bursts(model, prompts):
    whole = generate(model, prompts, max_new_tokens=10, eos_token_id=NEVER)
    bursts = list(stream(model, prompts, max_new_tokens=10, eos_token_id=NEVER, burst_size=4))
    assert [len(burst[0]) for burst in bursts] == [1, 4, 4, 1]
    assert [[token for burst in bursts for token in burst[row]] for row in range(4)] == whole


def test_draws_depend_on_seed_and_row_only(model, prompts):
    settings = {"max_new_tokens": 8, "temperature": 1.0, "top_k": 20, "top_p": 0.9, "eos_token_id": NEVER}
    first = generate(model, prompts, seed=3, **settings)
    assert generate(model, prompts, seed=3, **settings) == first
    assert generate(model, prompts[:2], seed=3, **settings) == first[:2]
    assert generate(model, prompts, seed=4, **settings) != first


def test_lengths_within_a_bucket_share_their_programs(model, prompts):
    generate(model, [prompts[1]], max_new_tokens=10, eos_token_id=NEVER)
    compiled = (decoding.prefill._cache_size(), decoding.decode._cache_size())
    for length, new in ((17, 4), (25, 20), (32, 7)):
        generate(model, [(prompts[3] * 2)[:length]], max_new_tokens=new, eos_token_id=NEVER)
    assert (decoding.prefill._cache_size(), decoding.decode._cache_size()) == compiled


def test_capacity_has_little_slack():
    for num_tokens in range(1, 3000, 7):
        assert num_tokens <= cache_capacity(num_tokens) <= max(64, 1.26 * num_tokens)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ([], {}, "prompts: found none"),
        ([[3], []], {}, r"prompts\[1\]: found no tokens"),
        ([[3, 256]], {}, "found token id 256, expected 0 <= id < vocab_size 256"),
        ([[3, -2]], {}, "found token id -2"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ([[3]], {"temperature": -1.0}, r"temperature: found -1\.0"),
        ([[3]], {"top_k": 0}, "top_k: found 0"),
        ([[3]], {"top_p": 1.5}, r"top_p: found 1\.5"),
        ([[3]], {"eos_token_id": 999}, "eos_token_id: found 999"),
    ],
)
def test_bad_requests_are_named(model, given, settings, message):
    with pytest.raises(InputError, match=message):
        generate(model, given, **settings)


def test_rotary_positions_end_where_the_config_says():
    config = ModelConfig.preset("tiny", rope_parameters=RopeParameters(full_attention=Rope()))
    model = create_model(config)
    with pytest.raises(InputError, match=r"250 tokens and 7 new ones make 257.* max_position_embeddings 256"):
        generate(model, [[3] * 250], max_new_tokens=7)
