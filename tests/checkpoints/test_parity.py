"""The same logits, loss and gradients as transformers' own PyTorch models, random in every tensor."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybrid_jax.checkpoints import from_pretrained, save_pretrained
from hybrid_jax.checkpoints.key_map import key_map
from hybrid_jax.models import CausalLM
from hybrid_jax.models.cache import init_cache
from hybrid_jax.models.paths import named_parameters
from tests.checkpoints.folders import tensors_of
from tests.tolerances import FLOAT32_PARITY, FLOAT32_PARITY_GRADIENT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH, PREFILL = 72, 33  # more than a chunk of 64; neither a multiple of it
NOPE = {"rope_theta": None, "rope_type": "default"}
ROPE = {"rope_theta": 5e5, "rope_type": "default"}
YARN = {"rope_theta": 5e5, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
HYBRID = {**SIZES, "linear_key_head_dim": 12, "linear_value_head_dim": 24}


class Case(NamedTuple):
    """A transformers configuration, and the dtype of its file."""

    family: str
    fields: dict[str, Any]
    dtype: str = "float32"


CASES = {
    "hybrid, GVA, RoPE": Case("OlmoHybrid", {**HYBRID, "linear_num_key_heads": 2, "rope_parameters": ROPE}),
    "hybrid, NoPE, tied, bfloat16 file": Case(
        "OlmoHybrid", {**HYBRID, "rope_parameters": NOPE, "tie_word_embeddings": True}, "bfloat16"
    ),
    "olmo3, YaRN, window 8": Case(
        "Olmo3",
        {
            **SIZES,
            "sliding_window": 8,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": ROPE},
        },
    ),
    "olmo3, tied, MHA": Case(
        "Olmo3", {**SIZES, "sliding_window": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    ),
}
# Gradients are slow to compile; the other cases add nothing to them.
GRADIENT_CASES = [name for name in CASES if name != "olmo3, tied, MHA"]


class Pair(NamedTuple):
    """One model twice, and the folder that transformers wrote."""

    theirs: Any
    ours: CausalLM
    folder: Any


@pytest.fixture(scope="module", autouse=True)
def quiet_transformers():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    case = request.param
    config = getattr(transformers, f"{case.family}Config")(**case.fields)
    theirs = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    randomise(theirs)
    theirs.to(getattr(torch, case.dtype)).save_pretrained(folder)
    return Pair(theirs.float(), from_pretrained(folder), folder)


@pytest.fixture(scope="module")
def input_ids():
    return np.random.default_rng(0).integers(3, 256, (2, LENGTH), dtype=np.int32)


@pytest.fixture(scope="module")
def their_logits(pair, input_ids):
    return logits_of(pair.theirs, input_ids)


def randomise(model):
    """No value is left where its initialisation put it: what does nothing at zero or one must show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("A_log"):
                tensor.uniform_(-0.5, 1.5, generator=generator)
            elif name.endswith("dt_bias"):
                tensor.uniform_(-4, 0, generator=generator)
            elif "norm" in name:
                tensor.normal_(1, 0.2, generator=generator)
            else:
                tensor.normal_(0, 0.3 if "conv1d" in name else 0.08, generator=generator)


def logits_of(model, input_ids):
    with torch.no_grad():
        return model(torch.tensor(input_ids, dtype=torch.long), use_cache=False).logits.numpy()


def rms_error(found, expected):
    """Root mean square of the difference, in standard deviations of what is expected."""
    return float(
        np.sqrt(np.mean(np.square(np.float64(found) - expected))) / np.std(expected, dtype=np.float64)
    )


def in_memory(tensors):
    """Tensors under the names that transformers has in memory: convolutions fused."""
    fused = {name: tensor for name, tensor in tensors.items() if "_conv1d" not in name}
    for name in tensors:
        if name.endswith("q_conv1d.weight"):
            parts = [tensors[name.replace("q_conv1d", f"{part}_conv1d")] for part in "qkv"]
            fused[name.replace("q_conv1d", "conv1d")] = np.concatenate(parts)
    return fused


def test_logits(pair, input_ids, their_logits):
    assert rms_error(pair.ours(input_ids).logits, their_logits) < FLOAT32_PARITY


def test_prefill_and_decode(pair, input_ids, their_logits):
    cache = init_cache(pair.ours.config, 2, LENGTH, PREFILL)
    out = pair.ours(input_ids[:, :PREFILL], cache=cache)
    parts = [out.logits]
    for t in range(PREFILL, LENGTH):
        out = pair.ours(input_ids[:, t : t + 1], cache=out.cache)
        parts.append(out.logits)
    assert rms_error(np.concatenate(parts, axis=1), their_logits) < FLOAT32_PARITY


@pytest.mark.parametrize("pair", [CASES[name] for name in GRADIENT_CASES], ids=GRADIENT_CASES, indirect=True)
def test_loss_and_gradients(pair, input_ids):
    ids = torch.tensor(input_ids, dtype=torch.long)
    pair.theirs.zero_grad()
    expected = torch.nn.functional.cross_entropy(
        pair.theirs(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()
    )
    expected.backward()
    expected = expected.item()

    @jax.jit
    @jax.value_and_grad
    def loss(model):
        logits = model.logits(model.hidden_states(jnp.asarray(input_ids[:, :-1])))
        return optax.softmax_cross_entropy_with_integer_labels(logits, input_ids[:, 1:]).mean()

    found, gradients = loss(pair.ours)
    assert abs(float(found) / expected - 1) < FLOAT32_PARITY
    by_path = {path: np.asarray(leaf) for path, leaf in named_parameters(gradients).items()}
    mapped = in_memory(
        {
            entry.name: entry.to_hf(
                by_path[entry.path] if entry.repeat is None else by_path[entry.path][entry.repeat]
            )
            for entry in key_map(pair.ours.config)
        }
    )
    theirs = {name: tensor.grad.numpy() for name, tensor in pair.theirs.named_parameters()}
    assert mapped.keys() == theirs.keys()
    errors = {
        name: np.linalg.norm(mapped[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in theirs
    }
    assert max(errors.values()) < FLOAT32_PARITY_GRADIENT, errors


@pytest.mark.parametrize("max_shard_size", ["5GB", "200KB"])
def test_transformers_loads_what_we_write(pair, input_ids, their_logits, tmp_path, max_shard_size):
    save_pretrained(pair.ours, tmp_path, max_shard_size)
    again, info = type(pair.theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert again.dtype == torch.float32
    np.testing.assert_array_equal(logits_of(again.eval(), input_ids), their_logits)


def test_there_and_back_is_bit_equal(pair, tmp_path):
    """In the dtype of the file, whatever layout transformers wrote."""
    stored = next(iter(tensors_of(pair.folder).values())).dtype
    save_pretrained(from_pretrained(pair.folder, dtype=stored), tmp_path)
    written = in_memory(tensors_of(tmp_path))
    expected = pair.theirs.state_dict()
    if pair.ours.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert tensor.dtype == stored
        np.testing.assert_array_equal(tensor.astype(np.float32), expected[name].numpy())
