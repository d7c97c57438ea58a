"""The names, shapes and dtypes of parameters stay what they are until someone means to change them."""

import json

import pytest

from tests.house.golden import FOLDER, TINY_PRESETS, parameters


@pytest.mark.parametrize("preset", TINY_PRESETS)
def test_parameters_match_the_golden_file(preset):
    golden = json.loads((FOLDER / f"{preset}.json").read_text(encoding="utf-8"))
    assert parameters(preset) == golden, "if this is meant: python -m tests.house.golden"


def test_there_is_one_golden_file_for_each_family():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == TINY_PRESETS
