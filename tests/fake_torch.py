"""As much of PyTorch as the benchmark of the gated delta rule calls, on JAX arrays; and an fla and others upon it."""

# Each becomes a module of its own in a folder or wheel, where no test's imports are at hand.
TORCH = """
from contextlib import nullcontext as no_grad
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np

class Tensor:
    def __init__(self, array, pullback=None):
        self.array, self.pullback, self.grad = array, pullback, None
    shape = property(lambda self: self.array.shape)
    device = "cuda"
    def detach(self): return Tensor(self.array)
    def requires_grad_(self): return self
    def float(self): return Tensor(self.array.astype(jnp.float32))
    def cpu(self): return self
    def numpy(self): return np.asarray(self.array)
    def exp(self): return Tensor(jnp.exp(self.array))
    def flatten(self, first, last):
        assert (first, last) == (0, 1)
        return Tensor(self.array.reshape(-1, *self.shape[2:]))
    def view(self, shape): return Tensor(self.array.reshape(shape))
    def __mul__(self, number): return Tensor(self.array * number)
    def backward(self, gradient): self.pullback(gradient.array)

def from_dlpack(array):
    assert isinstance(array, jax.Array)
    return Tensor(array)

def arange(number, device, dtype): return Tensor(jnp.arange(number))

int64 = "int64"
cuda = SimpleNamespace(
    synchronize=lambda: None, empty_cache=lambda: None, reset_peak_memory_stats=lambda: None,
    memory_allocated=lambda: 1 << 20, max_memory_allocated=lambda: 3 << 20,
)
"""
RULE = """
import jax
from pallas_kernels.gated_delta_rule import chunk_gated_delta_rule as op
from torch import Tensor

@jax.jit
def output(xs): return op(**xs, implementation="xla")[0]

@jax.jit
def gradients(xs, d_o): return jax.vjp(output, xs)[1](d_o)[0]

def chunk_gated_delta_rule(**tensors):
    xs = {name: x.array for name, x in tensors.items()}
    def backward(d_o):
        for name, x in gradients(xs, d_o).items():
            tensors[name].grad = Tensor(x)
    return Tensor(output(xs), backward), None
"""
NO_BACKWARD = """
from fla.ops.gated_delta_rule import chunk_gated_delta_rule as rule
from torch import Tensor

def refuse(d_o): raise RuntimeError("wrong with this Triton\\nsee #640")

def chunk_gated_delta_rule(**tensors): return Tensor(rule(**tensors)[0].array, refuse), None
"""
ONE_ROW = """
from fla.ops.gated_delta_rule import chunk_gated_delta_rule as rule
from torch import Tensor
import jax.numpy as jnp

def chunk_gated_delta_rule(q, k, v, g, beta, cu_seqlens, output_final_state):
    assert output_final_state and list(cu_seqlens.array) == [0, q.shape[0]]
    names = {"q": q, "k": k, "v": v, "g": Tensor(jnp.log(g.array)), "beta": beta}
    o, state = rule(**{name: Tensor(x.array[None]) for name, x in names.items()})
    return Tensor(o.array[0]), state
"""
WHEELS = {
    "fla_core-0.4.9-py3-none-any.whl": {
        "fla/__init__.py": '__version__ = "0.4.9"\n',
        "fla/ops/__init__.py": "",
        "fla/ops/gated_delta_rule.py": RULE,
    },
    "flash_qla-1.0-py3-none-any.whl": {"flash_qla/__init__.py": NO_BACKWARD},
    "flashinfer_python-2.0-py3-none-any.whl": {
        "flashinfer/__init__.py": '__version__ = "2.0"\n',
        "flashinfer/gdn_prefill.py": ONE_ROW,
    },
}
