"""from_pretrained and save_pretrained: models in Hugging Face's form, read and written tensor by tensor."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from hybrid_jax.checkpoints.host_arrays import copy_into, empty_aligned
from hybrid_jax.checkpoints.key_map import (
    Entry,
    Index,
    abstract_model,
    key_map,
    model_from_parameters,
    stays_float32,
)
from hybrid_jax.checkpoints.layouts import Match, Source, match_tensors
from hybrid_jax.checkpoints.model_folder import (
    CONFIG_FILE,
    copy_tokenizer,
    find_folder,
    read_config,
    replace_model,
    write_json,
)
from hybrid_jax.checkpoints.safetensors_reader import find_tensors
from hybrid_jax.checkpoints.safetensors_writer import LazyTensor, write_safetensors
from hybrid_jax.errors import InputError
from hybrid_jax.models import CausalLM
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.sharding import parameter_sharding

# Rows of a head compared at a time with the embedding it is tied to.
_ROWS = 8192


def from_pretrained(
    path_or_hub_id: str | os.PathLike[str],
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> CausalLM:
    """Load an OLMo Hybrid or OLMo 3 model from a local folder or from the Hugging Face hub.

    Every layout that these models are found in is understood (see ``layouts``). Tensors are read one by one, each
    straight into its place and sharding, so that memory holds the model and little more.

    Args:
        path_or_hub_id: a folder with config.json and safetensors, or an id like "allenai/Olmo-Hybrid-7B".
        revision: branch, tag or commit on the hub.
        dtype: float32 or bfloat16, of the parameters and of the matmuls; A_log, dt_bias and the output norm of
            Gated DeltaNet layers are float32 whatever it is.
        mesh: where the parameters shall lie, by the table in ``hybrid_jax.sharding``; None is one device.

    Returns:
        The model.

    Raises:
        InputError: no such folder or hub model, a file that is damaged, an unknown kind of model, or weights that
            do not fit config.json (every tensor that does not is listed).
    """
    name = dtype_name(dtype)
    folder = find_folder(path_or_hub_id, revision)
    config = read_config(folder).replace(dtype=name)
    match = match_tensors(config, find_tensors(folder))
    match.check(folder)
    _check_tied_head(folder, match)
    by_path: dict[str, list[Entry]] = {}
    for entry in key_map(config):
        by_path.setdefault(entry.path, []).append(entry)
    shapes = named_parameters(abstract_model(config))
    parameters = {}
    # The largest first: what must be held twice for a moment is then held while little else is.
    for path in sorted(shapes, key=lambda path: -shapes[path].size):
        parameter_dtype = np.dtype(jnp.float32 if stays_float32(path) else dtype)
        parameters[path] = _load(
            path, shapes[path].shape, parameter_dtype, by_path[path], match.sources, mesh
        )
    return model_from_parameters(config, parameters)


def save_pretrained(
    model: CausalLM,
    folder: str | os.PathLike[str],
    max_shard_size: int | str = "5GB",
    tokenizer_from: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model as a folder that transformers and vLLM load, in the layout of the released checkpoints.

    The folder is complete or, after a failure, as it was before. Parameters keep their dtype, but for those that
    are float32 within a bfloat16 model: where bfloat16 holds their values exactly, as after loading a bfloat16
    file, it is what is written.

    Args:
        model: its parameters may lie on several devices of this process.
        folder: made if need be; an earlier model in it is replaced, other files stay.
        max_shard_size: bytes, or a string like "5GB" (10^9 bytes); larger models get several files and an index.
        tokenizer_from: a folder whose tokenizer files are copied beside the model.

    Raises:
        InputError: ``max_shard_size`` or ``tokenizer_from`` is wrong, or ``folder`` is a file.
        OSError: it cannot be written, a full disk for instance.
    """
    parameters = named_parameters(model)
    main_dtype = np.dtype(parameters["embed_tokens.embedding"].dtype)
    narrow = all(
        _fits(np.asarray(leaf), main_dtype) for path, leaf in parameters.items() if stays_float32(path)
    )
    hf_config = {**model.config.to_hf(), "dtype": main_dtype.name}
    tensors = {}
    for entry in key_map(model.config):
        leaf = parameters[entry.path]
        dtype = main_dtype if narrow and stays_float32(entry.path) else np.dtype(leaf.dtype)
        tensors[entry.name] = LazyTensor(
            shape=entry.shape, dtype=dtype, values=partial(_hf_values, entry, leaf)
        )
    with replace_model(Path(folder)) as temporary:
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), temporary)
        write_safetensors(temporary, tensors, max_shard_size)
        write_json(temporary / CONFIG_FILE, hf_config)


def dtype_name(dtype: DTypeLike) -> str:
    """The name of a dtype that a model can have; raises InputError for any but float32 and bfloat16."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in ("float32", "bfloat16"):
        raise InputError(f"dtype: found {name}, expected float32 or bfloat16")
    return name


def _load(
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    entries: list[Entry],
    sources: Mapping[str, Source],
    mesh: Mesh | None,
) -> jax.Array:
    """One parameter, assembled on the host (only what the devices of this process need) and handed over."""
    parts: dict[str, np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        given = index or (slice(None),) * len(shape)
        bounds = tuple(slice(*each.indices(size)[:2]) for each, size in zip(given, shape, strict=True))
        if str(bounds) not in parts:
            parts[str(bounds)] = _assemble(bounds, dtype, entries, sources)
        return parts[str(bounds)]

    if mesh is None:
        return jax.device_put(read(None))
    return jax.make_array_from_callback(shape, parameter_sharding(path, shape, mesh), read)


def _assemble(
    index: Index, dtype: np.dtype, entries: list[Entry], sources: Mapping[str, Source]
) -> np.ndarray:
    part = empty_aligned(tuple(each.stop - each.start for each in index), dtype)
    stacked = entries[0].repeat is not None
    slots = zip(entries[index[0]], part, strict=True) if stacked else [(entries[0], part)]
    for entry, slot in slots:
        tensor = sources[entry.name].read(entry.hf_index(index[1:] if stacked else index))
        copy_into(slot, entry.from_hf(tensor))
    return part


def _check_tied_head(folder: Path, match: Match) -> None:
    if match.tied_head is None:
        return
    num_rows = match.tied_head.shape[0]
    for start in range(0, num_rows, _ROWS):
        rows = (slice(start, min(start + _ROWS, num_rows)), slice(None))
        embedding = match.sources["model.embed_tokens.weight"].read(rows)
        if not np.array_equal(match.tied_head.read(rows), embedding):
            raise InputError(
                f"{folder}: lm_head.weight differs from model.embed_tokens.weight, "
                "though config.json says tie_word_embeddings"
            )


def _hf_values(entry: Entry, leaf: jax.Array) -> np.ndarray:
    return entry.to_hf(np.asarray(leaf if entry.repeat is None else leaf[entry.repeat]))


def _fits(values: np.ndarray, dtype: np.dtype) -> bool:
    return bool(np.array_equal(values.astype(dtype).astype(values.dtype), values))
