"""Checkpoints of a run: model, optimizer state, position in the data and configuration, written by Orbax.

One folder per step under ``checkpoints/``. Arrays are saved under their dotted names, so that reading them needs
neither the class of the model nor that of the optimizer's state.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from hybrid_jax.errors import InputError
from hybrid_jax.models.paths import named_parameters
from hybrid_jax.training.run_config import CheckpointConfig
from hybrid_jax.training.state import TrainState

FOLDER = "checkpoints"


class Checkpointer:
    """Writes, finds and reads the checkpoints of one run.

    Writing goes on in the background, one checkpoint at a time; what goes wrong there is raised by the next call of
    ``save``, ``check`` or ``wait``. A checkpoint appears under its final name only once it is complete.
    """

    def __init__(self, run_folder: Path, config: CheckpointConfig) -> None:
        """Look at ``run_folder/checkpoints``; what a killed run left half-written there is removed."""
        self._folder = run_folder.absolute() / FOLDER
        self._config = config
        self._pending_step: int | None = None
        self._remove_half_written()
        logging.getLogger("absl").addFilter(_is_not_raised_too)

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is."""
        return self._folder / str(step)

    def newest_step(self) -> int | None:
        """The number of updates in the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step() if self._folder.exists() else None

    def save(self, state: TrainState, step: int, config: dict[str, Any], data: dict[str, Any]) -> None:
        """Start writing the checkpoint of ``step``, once an earlier one is complete.

        Args:
            state: may be given away (donated) as soon as this returns.
            step: the number of updates done.
            config: the run's configuration, as JSON values.
            data: what identifies the data and the position in it, as JSON values.

        Raises:
            OSError: this checkpoint or the one before cannot be written; complete ones are untouched.
        """
        self.wait()
        self._pending_step = step
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(named_parameters(state.model)),
            optimizer=ocp.args.StandardSave(named_parameters(state.opt_state)),
            config=ocp.args.JsonSave(config),
            data=ocp.args.JsonSave(data),
        )
        with self._failures_explained():
            self._manager.save(step, args=items)

    def check(self) -> None:
        """Raise OSError if the last checkpoint could not be written; never wait."""
        if self._pending_step is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete. Raises OSError if it cannot be written."""
        if self._pending_step is None:
            return
        with self._failures_explained():
            self._manager.wait_until_finished()
        self._pending_step = None

    def read_records(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The ``config`` and ``data`` saved with ``step``. Raises InputError if the checkpoint is damaged."""
        args = ocp.args.Composite(config=ocp.args.JsonRestore(), data=ocp.args.JsonRestore())
        items = self._restore(step, args)
        return items["config"], items["data"]

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """The state saved as ``step``, whose ``jax.eval_shape`` is ``shapes``.

        Raises:
            InputError: the checkpoint is damaged or holds other arrays.
        """
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(_targets(shapes.model)),
            optimizer=ocp.args.StandardRestore(_targets(shapes.opt_state)),
        )
        items = self._restore(step, args)
        return TrainState(
            step=jnp.int32(step),
            model=_with_leaves(shapes.model, items["model"]),
            opt_state=_with_leaves(shapes.opt_state, items["optimizer"]),
        )

    def close(self) -> None:
        """Wait for the last checkpoint and end the threads. Raises OSError if it cannot be written."""
        try:
            self.wait()
        finally:
            if "_manager" in vars(self):
                self._manager.close()
            logging.getLogger("absl").removeFilter(_is_not_raised_too)

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Made when first needed, because it makes the folder."""
        kept: list[PreservationPolicy] = [LatestN(self._config.keep_last)]
        if self._config.keep_interval is not None:
            kept.append(EveryNSteps(self._config.keep_interval))
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=AnyPreservationPolicy(kept)),
            item_names=("model", "optimizer", "config", "data"),
        )

    def _restore(self, step: int, args: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{self.path(step)}: cannot be read: {error}") from error

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            code = _os_error_code(error)
            if code is None:
                raise
            failed, self._pending_step = self._pending_step, None
            self._remove_half_written()
            self._manager.reload()
            newest = self.newest_step()
            kept = "there is no earlier one" if newest is None else f"the one of step {newest} is intact"
            raise OSError(
                f"{self._folder}: cannot write the checkpoint of step {failed}: {os.strerror(code)}; {kept}"
            ) from error

    def _remove_half_written(self) -> None:
        for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """Keep from stderr the tracebacks that Orbax's threads log of errors which it also raises."""
    return record.exc_info is None or "orbax" not in Path(record.pathname).parts


def _os_error_code(error: OSError | ValueError) -> int | None:
    """The errno behind ``error``; TensorStore's are ValueErrors that name it in their text."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    named = re.search(r"os_error_code='(\d+)'", str(error))
    return int(named[1]) if named else None


def _targets(shapes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    device = SingleDeviceSharding(jax.devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or device)
        for name, leaf in named_parameters(shapes).items()
    }


def _with_leaves(shapes: Any, leaves: Mapping[str, jax.Array]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(shapes), [leaves[name] for name in named_parameters(shapes)])
