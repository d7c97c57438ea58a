"""The gated delta rule (arXiv 2412.06464): chunked for whole sequences, token by token for decoding."""

from pallas_kernels.gated_delta_rule.api import chunk_gated_delta_rule, recurrent_gated_delta_rule
from pallas_kernels.gated_delta_rule.chunked import SAVED_FOR_BACKWARD

__all__ = ["SAVED_FOR_BACKWARD", "chunk_gated_delta_rule", "recurrent_gated_delta_rule"]
