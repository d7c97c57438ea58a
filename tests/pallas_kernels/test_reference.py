"""The two float64 references, loops in numpy and the scan that is differentiated, say the same."""

import pytest

from tests import tolerances
from tests.pallas_kernels import reference
from tests.pallas_kernels.conformance import relative_error
from tests.pallas_kernels.inputs import PACKINGS, packed_inputs


@pytest.mark.parametrize("name", PACKINGS)
def test_scan_is_the_definition(name):
    (arrays, cotangents), segment_ids = packed_inputs(PACKINGS[name])
    o, final_state = reference.numpy_forward(arrays, segment_ids, use_qk_l2norm=True)
    found = reference.float64(arrays, cotangents, segment_ids, use_qk_l2norm=True)
    assert relative_error(found["o"], o) <= tolerances.FLOAT64
    assert relative_error(found["final_state"], final_state) <= tolerances.FLOAT64
