"""What a checkpoint holds, told from its configuration and headers alone."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hybrid_jax.checkpoints.layouts import match_tensors
from hybrid_jax.checkpoints.model_folder import CONFIG_FILE, find_folder, read_config
from hybrid_jax.checkpoints.orbax_io import CONFIG, MODEL, compare_arrays, read_orbax
from hybrid_jax.checkpoints.safetensors_reader import DTYPES, find_tensors
from hybrid_jax.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checkpoint as found, whether or not it fits its configuration.

    Attributes:
        form: "Hugging Face" or "Orbax".
        config: the model it says it is.
        num_parameters: of all arrays in it.
        num_bytes: on disk, of the arrays.
        dtypes: number of arrays by dtype, the most frequent first.
        layout: "released", or how it differs from that.
        problems: one line for each array that does not fit the configuration.
    """

    form: str
    config: ModelConfig
    num_parameters: int
    num_bytes: int
    dtypes: dict[str, int]
    layout: str
    problems: tuple[str, ...]

    @property
    def main_dtype(self) -> str:
        """The dtype in which the model can be held without loss: bfloat16 if most arrays are, else float32."""
        return "bfloat16" if next(iter(self.dtypes)) == "bfloat16" else "float32"


def describe(path: str | Path, revision: str | None = None) -> Description:
    """Describe a Hugging Face folder or hub model, or an Orbax checkpoint; no array is read.

    Raises:
        InputError: neither of these, or damaged.
    """
    if Path(path).is_dir() and not (Path(path) / CONFIG_FILE).exists() and (Path(path) / CONFIG).is_dir():
        return _describe_orbax(Path(path))
    folder = find_folder(path, revision)
    config = read_config(folder)
    tensors = find_tensors(folder)
    match = match_tensors(config, tensors)
    sizes = [math.prod(tensor.shape) for tensor in tensors.values()]
    dtypes = [DTYPES.get(tensor.dtype, tensor.dtype) for tensor in tensors.values()]
    return Description(
        form="Hugging Face",
        config=config,
        num_parameters=sum(sizes),
        num_bytes=sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()}),
        dtypes=dict(Counter(dtypes).most_common()),
        layout="; ".join(match.variations) or "released",
        problems=match.problems,
    )


def _describe_orbax(folder: Path) -> Description:
    config, arrays = read_orbax(folder)
    sizes = [math.prod(array.shape) for array in arrays.values()]
    return Description(
        form="Orbax",
        config=config,
        num_parameters=sum(sizes),
        num_bytes=sum(file.stat().st_size for file in (folder / MODEL).rglob("*") if file.is_file()),
        dtypes=dict(Counter(array.dtype.name for array in arrays.values()).most_common()),
        layout="parameters by path",
        problems=tuple(compare_arrays(config, arrays)),
    )
