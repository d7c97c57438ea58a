import numpy as np
import pytest

from hybrid_jax.scaling import published
from tests.scaling.ladder import HORIZONS, SIZES


@pytest.fixture(scope="module")
def rows():
    return published.compare()


def test_all_tables_are_compared(rows):
    # Three columns of Table 19 and one of Table 20 for each of three architectures, savings of two, Table 4.
    assert len(rows) == 3 * (3 * 6 + 6) + 2 * 6 + 2


def test_rounding_explains_every_number_but_the_final_hybrids_loss(rows):
    refused = [(each.architecture, each.quantity) for each in rows if not each.allowed]
    assert refused == [("olmo_hybrid", "loss of the final model")]


def test_the_papers_savings_lie_in_what_rounding_allows(rows):
    savings = [
        each for each in rows if (each.architecture, each.quantity) == ("olmo_hybrid", "token savings")
    ]
    assert [each.printed.digits for each in savings] == ["1.32", "1.57", "1.68", "1.75", "1.82", "1.89"]
    assert [round(each.ours, 2) for each in savings] == [1.54, 1.76, 1.86, 1.92, 1.99, 2.06]
    assert (round(savings[0].low, 2), round(savings[0].high, 2)) == (0.85, 2.80)
    assert (round(savings[-1].low, 2), round(savings[-1].high, 2)) == (1.65, 2.57)


def test_savings_are_the_ratio_of_printed_tokens():
    for name, printed in published.SAVINGS.items():
        for reference, own, ratio in zip(
            published.TOKENS["olmo3"], published.TOKENS[name], printed, strict=True
        ):
            low = (reference.value - reference.half_unit) / (own.value + own.half_unit)
            high = (reference.value + reference.half_unit) / (own.value - own.half_unit)
            assert ratio.overlaps(low, high)


def test_one_law_for_each_architecture_gives_its_tables(rows):
    tables = [each for each in rows if each.quantity != "loss of the final model"]
    off = [
        (each.architecture, each.quantity, each.at)
        for each in tables
        if abs(each.unrounded - each.printed.value) > each.printed.half_unit
    ]
    # 2.7749, which would be printed as 2.77.
    assert off == [("olmo3", "optimal loss", "1e20 FLOPs")]
    (exception,) = (each for each in tables if (each.architecture, each.quantity, each.at) == off[0])
    assert exception.printed.digits == "2.78"
    assert exception.unrounded == pytest.approx(2.775, abs=2e-4)


def test_that_law_rounds_to_the_printed_coefficients():
    for name, rounded in published.FREE.items():
        law = published.unrounded(name)
        for field in ("E", "A", "alpha", "B", "beta"):
            printed = getattr(rounded, field)
            assert abs(getattr(law, field) - printed.value) <= printed.half_unit * (1 + 1e-9)


def test_fixed_fit_is_told_twice_and_differently():
    for name, prose in published.FIXED_IN_PROSE.items():
        table = published.FIXED[name]
        for field, differs in (("E", True), ("A", True), ("B", False)):
            printed, told = getattr(table, field), prose[field]
            apart = abs(printed.value - told.value) > printed.half_unit + told.half_unit
            assert apart == differs, (name, field)


def test_pure_gdn_never_has_the_lowest_loss_of_the_ladder():
    hybrid, gdn = published.FREE["olmo_hybrid"].law, published.FREE["gdn"].law
    sizes = np.array(list(SIZES.values())) * 1e6
    for horizon in HORIZONS:
        assert (hybrid.loss(sizes, 20 * horizon * sizes) < gdn.loss(sizes, 20 * horizon * sizes)).all()


def test_five_of_the_six_printed_intervals_contain_no_savings():
    hybrid = published.SAVINGS_INTERVALS["olmo_hybrid"]
    assert [low <= 1 <= high for low, high in hybrid] == [True, False, True, True, True, True]
