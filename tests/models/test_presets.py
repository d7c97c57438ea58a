import pytest

from hybrid_jax.config import ModelConfig
from hybrid_jax.models import count_parameters

# arXiv 2604.03444, Table 22: millions of parameters without the input embedding.
LADDER = {
    "60m": (57, 73, 78),
    "100m": (102, 130, 140),
    "190m": (190, 254, 276),
    "370m": (371, 523, 574),
    "600m": (548, 722, 780),
    "760m": (758, 948, 1011),
    "1b": (1279, 1482, 1549),
}


@pytest.mark.parametrize("size", LADDER)
def test_ladder_sizes_are_the_published_ones(size):
    names = (f"olmo3_{size}", f"olmo_hybrid_{size}", f"gdn_{size}")
    counts = [count_parameters(ModelConfig.preset(name), with_input_embedding=False) for name in names]
    assert tuple(round(count / 1e6) for count in counts) == LADDER[size]


def test_7b_sizes_are_the_published_ones():
    hybrid = ModelConfig.preset("olmo_hybrid_7b")
    assert round(count_parameters(hybrid) / 1e9, 2) == 7.43
    assert round(count_parameters(hybrid, with_input_embedding=False) / 1e9, 2) == 7.05
    assert round(count_parameters(ModelConfig.preset("olmo3_7b")) / 1e9, 1) == 7.3
