"""The gated delta rule (arXiv 2412.06464): chunked for whole sequences, token by token for decoding."""

from pallas_kernels.gated_delta_rule.api import chunk_gated_delta_rule, recurrent_gated_delta_rule

__all__ = ["chunk_gated_delta_rule", "recurrent_gated_delta_rule"]
