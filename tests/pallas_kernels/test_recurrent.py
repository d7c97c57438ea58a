"""The token-by-token form, which decoding uses."""

from pallas_kernels.gated_delta_rule import recurrent_gated_delta_rule
from tests.pallas_kernels.conformance import GatedDeltaRuleConformance


class TestRecurrent(GatedDeltaRuleConformance):
    op = staticmethod(recurrent_gated_delta_rule)
