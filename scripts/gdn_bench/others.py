"""Other projects' kernels, in PyTorch, on the same arrays in the same memory."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scripts.gdn_bench.settings import Arrays
from scripts.gdn_bench.timing import Clock, Timing, num_bytes

_INPUTS = ("q", "k", "v", "g", "beta")


class TorchOp:
    """A chunked gated delta rule of PyTorch, called as fla's.

    Args:
        function: takes q, k, v [B, T, H, D], log decay g and beta, and returns the output and something.
        version: of the project.
        has_gradient: whether it has one.
    """

    def __init__(self, function: Callable[..., Any], version: str, has_gradient: bool = True):
        self._function = function
        self.version = version
        self.directions = ("forward", "with backward") if has_gradient else ("forward",)

    def time(self, direction: str, clock: Clock, several: list[Arrays]) -> Timing:
        """Median milliseconds, and the bytes of inputs and of what PyTorch allocates for one call."""
        import torch

        tensors = [_to_torch(arrays) for arrays in several]

        def work(i: int) -> None:
            self._run(direction, tensors[i])

        milliseconds = clock.median(work, lambda _: torch.cuda.synchronize())
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(0)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()  # JAX is next to need the memory
        # The inputs are JAX's, so that PyTorch does not count them.
        given = several[0] if direction != "forward" else {name: several[0][name] for name in _INPUTS}
        return Timing(milliseconds, peak + num_bytes(given))

    def results(self, direction: str, arrays: Arrays) -> Arrays:
        """The output; or the gradients of the five inputs."""
        found = self._run(direction, _to_torch(arrays))
        return {name: x.detach().float().cpu().numpy().astype(np.float64) for name, x in found.items()}

    def _run(self, direction: str, tensors: Arrays) -> Arrays:
        import torch

        if direction == "forward":
            with torch.no_grad():
                return {"o": self._function(**{name: tensors[name] for name in _INPUTS})[0]}
        inputs = {name: tensors[name].detach().requires_grad_() for name in _INPUTS}
        self._function(**inputs)[0].backward(tensors["d_o"])
        return {f"d{name}": x.grad for name, x in inputs.items()}


def _fla() -> TorchOp:
    version = importlib.import_module("fla").__version__
    return TorchOp(importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule, version)


def _flash_qla() -> TorchOp:
    module = importlib.import_module("flash_qla")
    return TorchOp(module.chunk_gated_delta_rule, getattr(module, "__version__", "of unknown version"))


def _flashinfer() -> TorchOp:
    import torch

    function = importlib.import_module("flashinfer.gdn_prefill").chunk_gated_delta_rule

    def as_fla(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
        # It takes rows end to end, and decay itself instead of its logarithm.
        rows, length = q.shape[:2]
        packed = [x.flatten(0, 1) for x in (q, k, v, g.exp(), beta)]
        ends = torch.arange(rows + 1, device=q.device, dtype=torch.int64) * length
        o, state = function(*packed, cu_seqlens=ends, output_final_state=True)
        return o.view(v.shape), state

    return TorchOp(as_fla, importlib.import_module("flashinfer").__version__, has_gradient=False)


LOADERS: dict[str, Callable[[], TorchOp]] = {
    "fla": _fla,
    "flash_qla": _flash_qla,
    "flashinfer": _flashinfer,
}


def _to_torch(arrays: Arrays) -> Arrays:
    import torch

    return {name: torch.from_dlpack(x) for name, x in arrays.items() if isinstance(x, jax.Array)}
