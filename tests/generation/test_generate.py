"""generate and stream beside a naive loop that runs the whole text through the model for each token."""

from functools import cache
from itertools import chain

import jax
import numpy as np
import pytest

import hybrid_jax
from hybrid_jax.config import ModelConfig, Rope, RopeParameters
from hybrid_jax.errors import InputError
from hybrid_jax.generation import api, decoding, stream
from hybrid_jax.generation.sampling import make_sampling
from hybrid_jax.models import CausalLM, create_model, init_cache
from hybrid_jax.models.paths import parameter_path
from hybrid_jax.sharding import make_mesh, parameter_sharding
from tests.models.conftest import random_model

NUM_NEW = 12
CHUNK = 16
# One token; less than a chunk, a whole one, one more; several chunks and windows.
LENGTHS = (1, 11, CHUNK, CHUNK + 1, 43)
# Every text here fits this many tokens, the smallest cache.
CAPACITY = 64
CONFIGS = {
    "hybrid": ModelConfig.preset("tiny", layer_types=("linear_attention", "full_attention") * 2),
    "olmo3": ModelConfig.preset("tiny_olmo3", tie_word_embeddings=True),
    "shallow": ModelConfig.preset(
        "tiny", num_hidden_layers=2, layer_types=("linear_attention", "full_attention")
    ),
}


@cache
def built(name: str) -> CausalLM:
    return random_model(CONFIGS[name])


@pytest.fixture(params=["hybrid", pytest.param("olmo3", marks=pytest.mark.slow)])
def model(request) -> CausalLM:
    return built(request.param)


@pytest.fixture
def hybrid() -> CausalLM:
    return built("hybrid")


@pytest.fixture
def shallow() -> CausalLM:
    """Quick to compile, for what does not depend on the layers."""
    return built("shallow")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, length).tolist() for length in LENGTHS]


@pytest.fixture
def three(prompts) -> list[list[int]]:
    return [prompts[-1], prompts[0], prompts[2]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(api, "_MAX_CHUNK", CHUNK)


def generate(model, prompts, max_new_tokens=NUM_NEW, eos_token_id=-1, **options):
    return hybrid_jax.generate(model, prompts, max_new_tokens, eos_token_id=eos_token_id, **options)


def naive(model, prompt, num_new=NUM_NEW):
    """Greedy tokens from whole forward passes; the tail of a fixed length is padding, which nothing sees."""
    tokens = list(prompt)
    for _ in range(num_new):
        ids = np.zeros((1, CAPACITY), np.int32)
        ids[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(model(ids).logits[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


def test_greedy_equals_whole_forward_passes_together_and_alone(model, prompts):
    together = generate(model, prompts)
    assert together == [naive(model, prompt) for prompt in prompts]
    assert [generate(model, [prompt])[0] for prompt in prompts] == together
    assert len({tuple(row) for row in together}) == len(prompts), "the models are too dull to tell rows apart"


def test_neighbours_and_their_order_do_not_matter(hybrid, prompts):
    together = generate(hybrid, prompts)
    assert generate(hybrid, prompts[::-1]) == together[::-1]


def test_prefill_in_chunks_equals_prefill_at_once(model, prompts, monkeypatch):
    chunked = generate(model, prompts)
    monkeypatch.setattr(api, "_MAX_CHUNK", CAPACITY)
    assert generate(model, prompts) == chunked


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Chunks that were read once for several prompts, each time."""
    counts: list[int] = []
    original = decoding.read_beginning

    def counted(model, input_ids, num_chunks, **sizes):
        counts.append(int(num_chunks))
        return original(model, input_ids, num_chunks, **sizes)

    monkeypatch.setattr(decoding, "read_beginning", counted)
    return counts


def test_what_all_prompts_begin_with_is_read_once(model, prompts, read):
    beginning, end = prompts[-1][: 2 * CHUNK + 3], prompts[1]
    rows = [beginning + end[:9], beginning + end[1:2], beginning]
    assert generate(model, rows) == [naive(model, row) for row in rows]
    assert read == [2]
    assert generate(model, rows[:1]) == [naive(model, rows[0])]
    assert read == [2], "a prompt alone shares nothing"


@pytest.mark.parametrize(
    ("num_common", "num_chunks"), [(3 * CHUNK, 2), (2 * CHUNK - 1, 1), (CHUNK - 1, 0), (0, 0)]
)
def test_every_prompt_keeps_a_token_of_its_own(num_common, num_chunks):
    first = np.arange(3 * CHUNK)
    other = np.where(first < num_common, first, -1)
    assert api._num_common_chunks([first, first, other], CHUNK) == num_chunks


def test_going_on_from_what_was_made_equals_one_go(hybrid, prompts):
    whole = generate(hybrid, prompts)
    first = generate(hybrid, prompts, 5)
    rest = generate(hybrid, [p + new for p, new in zip(prompts, first, strict=True)], NUM_NEW - 5)
    assert [a + b for a, b in zip(first, rest, strict=True)] == whole


def test_going_on_from_a_returned_cache_equals_one_go(shallow, three):
    prompt = three[0]
    out = shallow(np.array([prompt[:20]]), cache=init_cache(shallow.config, 1, CAPACITY, 23))
    out = shallow(np.array([prompt[20:]]), cache=out.cache)
    tokens = [int(np.argmax(out.logits[0, -1]))]
    while len(tokens) < NUM_NEW:
        out = shallow(np.array([tokens[-1:]]), cache=out.cache)
        tokens.append(int(np.argmax(out.logits[0, -1])))
    assert tokens == generate(shallow, three)[0]


@pytest.mark.parametrize("burst_size", [1, 4, 256])
def test_streamed_tokens_are_those_of_generate(hybrid, prompts, burst_size):
    expected = generate(hybrid, prompts)
    bursts = list(stream(hybrid, prompts, NUM_NEW, eos_token_id=-1, burst_size=burst_size))
    lengths = [len(burst[0]) for burst in bursts]
    assert lengths == {1: [1] * NUM_NEW, 4: [1, 4, 4, 3], 256: [1, 11]}[burst_size]
    rows = zip(*bursts, strict=True)
    assert [list(chain.from_iterable(row)) for row in rows] == expected


def test_each_row_ends_with_its_own_end_of_text(hybrid, prompts):
    whole = generate(hybrid, prompts)
    for end in {row[i] for i, row in enumerate(whole)}:
        expected = [row[: row.index(end) + 1] if end in row else row for row in whole]
        assert generate(hybrid, prompts, eos_token_id=end) == expected
    ends = whole[0][3], whole[1][0]
    cuts = [min([row.index(end) + 1 for end in ends if end in row] + [NUM_NEW]) for row in whole]
    found = generate(hybrid, prompts, eos_token_id=ends)
    assert found == [row[:cut] for row, cut in zip(whole, cuts, strict=True)]


def test_the_end_of_text_is_the_models_own_unless_said(shallow, three):
    config = shallow.config
    for own, said, expected in (
        (7, None, [7]),
        ((3, 5), None, [3, 5]),
        (None, None, []),
        (7, -1, []),
        (7, 4, [4]),
        (7, [4, 9], [4, 9]),
    ):
        stops = api._stops(said, config.replace(eos_token_id=own))
        assert np.flatnonzero(stops).tolist() == expected
    whole = generate(shallow, three)
    assert config.eos_token_id == 2
    assert hybrid_jax.generate(shallow, three, NUM_NEW) == [
        row[: row.index(2) + 1] if 2 in row else row for row in whole
    ]


def test_streaming_ends_when_all_rows_have(shallow, three):
    firsts = [row[0] for row in generate(shallow, three, 1)]
    bursts = list(stream(shallow, three, NUM_NEW, eos_token_id=firsts))
    assert bursts == [[[first] for first in firsts]]


def test_sampling_depends_on_seed_and_row_alone(shallow, three):
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9}
    one = generate(shallow, three, seed=1, **options)
    assert generate(shallow, three, seed=1, **options) == one
    assert generate(shallow, three, seed=2, **options) != one
    same = generate(shallow, [three[1]] * 3, seed=1, **options)
    assert same[1] == one[1]
    assert len({tuple(row) for row in same}) == 3
    assert generate(shallow, three, temperature=0.8, top_k=1, top_p=0.9) == generate(shallow, three)
    assert generate(shallow, three[:1], seed=1, **options) == one[:1]


def test_lengths_and_settings_share_a_program(shallow, prompts, traces):
    # Two rows are met here alone, so that nothing is compiled before.
    pair = [prompts[-1], prompts[0]]
    generate(shallow, pair)
    assert traces == [(2, CHUNK), (2, 1)], "one trace of the prefill, one of the decode loop"
    generate(shallow, [pair[0][:20], pair[1] * 2], 30, eos_token_id=(5, 7))
    generate(shallow, pair[::-1], 1, seed=3)
    assert len(list(stream(shallow, pair, 9, eos_token_id=-1, burst_size=2))) == 5
    assert len(traces) == 2
    generate(shallow, pair, 30)
    assert len(traces) == 4, "a longer text takes a larger cache"
    generate(shallow, pair, 30, temperature=0.5, top_k=3, top_p=0.5)
    assert len(traces) == 6, "sampling takes another program"
    generate(shallow, pair, 25, temperature=0.7, top_k=9, top_p=0.9, seed=1)
    assert len(traces) == 6
    generate(shallow, [pair[0], pair[0][:40]])
    assert traces[6:] == [(1, CHUNK), (2, CHUNK)], "prompts that begin alike are read by other programs"
    generate(shallow, [pair[0][:20], pair[0][:19]])
    assert len(traces) == 8


def test_cache_sizes_are_few_and_not_much_too_large():
    sizes = [api.cache_capacity(n) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert sizes[63:129] == [64] + [80] * 16 + [96] * 16 + [112] * 16 + [128] * 16 + [160]
    assert all(size < 1.25 * n for n, size in enumerate(sizes, 1) if n >= 64)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 26


def test_memory_of_prefill_grows_with_the_prompt_not_its_square(shallow):
    def temporary_bytes(length):
        def first_token(ids):
            lengths = np.full(1, length, np.int32)
            arguments = (shallow, ids, lengths, np.uint32(0), settings())
            return decoding.prefill(*arguments, capacity=length, chunk_size=64).token

        program = jax.jit(first_token).lower(np.zeros((1, length), np.int32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8192) < 5 * temporary_bytes(2048)


def test_bfloat16_keeps_its_types_through_the_loops(shallow):
    def all_loops():
        model = create_model(shallow.config.replace(dtype="bfloat16"))
        ids, lengths = np.zeros((2, 64), np.int32), np.full(2, 19, np.int32)
        sampled = settings(temperature=1.0, top_k=5, top_p=0.9)
        sizes = {"capacity": 64, "chunk_size": 16}
        beginning = decoding.read_beginning(model, ids[:1], np.int32(1), **sizes)
        rows = decoding.prefill(model, ids, lengths, np.uint32(0), sampled, beginning, **sizes)
        model, rows = decoding.unstack(model, rows)
        rows, made = decoding.decode(model, rows, sampled, np.int32(3))
        linear, attention = rows.cache.layers
        return linear.state, linear.q_tail, attention.k, made

    types = [x.dtype for x in jax.eval_shape(all_loops)]
    assert types == ["float32", "bfloat16", "bfloat16", "int32"]


def test_a_model_on_a_mesh_writes_the_same(shallow, three):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    leaves, structure = jax.tree_util.tree_flatten_with_path(shallow)
    placed = [
        jax.device_put(x, parameter_sharding(parameter_path(path), x.shape, mesh)) for path, x in leaves
    ]
    on_mesh = jax.tree.unflatten(structure, placed)
    assert generate(on_mesh, three) == generate(shallow, three)
    alike = [three[0] + [last] for last in range(3)]
    assert generate(on_mesh, alike) == generate(shallow, alike)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: found none, expected at least one list of token ids"),
        ([[1], []], {}, "prompts[1]: found no tokens, expected at least one"),
        ([[1], [2, 256]], {}, "prompts[1]: found token id 256, expected 0 <= id < vocab_size 256"),
        ([[-1]], {}, "prompts[0]: found token id -1, expected 0 <= id < vocab_size 256"),
        ([[2**40]], {}, "prompts[0]: found token id 1099511627776"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
        ([[1]], {"temperature": -1.0}, "temperature: found -1.0"),
        ([[1]], {"top_k": 0}, "top_k: found 0"),
        ([[1]], {"top_p": 0.0}, "top_p: found 0.0"),
        ([[1]], {"eos_token_id": 256}, "eos_token_id: found 256, expected 0 <= id < vocab_size 256, or -1"),
        ([[1]], {"burst_size": 257}, "burst_size: found 257, expected 1 to 256"),
    ],
)
def test_bad_input_is_named(shallow, prompts, options, message):
    with pytest.raises(InputError) as error:
        stream(shallow, prompts, **options)
    assert message in str(error.value)


def test_rotary_positions_end_and_no_positions_do_not():
    limits = {"max_position_embeddings": 32}
    rotary = RopeParameters(full_attention=Rope())
    for config, limited in (
        (ModelConfig.preset("tiny", rope_parameters=rotary, **limits), True),
        (ModelConfig.preset("tiny_olmo3", **limits), True),
        (ModelConfig.preset("tiny", **limits), False),
    ):
        model = jax.eval_shape(lambda config=config: create_model(config))
        stream(model, [[1] * 20], 12)
        if not limited:
            stream(model, [[1] * 20], 13)
            continue
        with pytest.raises(InputError) as error:
            stream(model, [[1], [1] * 20], 13)
        assert str(error.value) == (
            "prompts[1]: 20 tokens and 13 new ones make 33, but the model's rotary positions end at "
            "max_position_embeddings 32"
        )


def settings(temperature=0.0, top_k=None, top_p=None) -> decoding.Settings:
    return decoding.Settings(sampling=make_sampling(temperature, top_k, top_p), stops=np.zeros(256, bool))
