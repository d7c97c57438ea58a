"""Train a model: ``train.py configs/quickstart.yaml --num-steps 100``; ``--help`` after the file lists every field."""

from hybrid_jax.cli import run_script
from hybrid_jax.processes import joined
from hybrid_jax.training.run_config import RunConfig
from hybrid_jax.training.trainer import train
from hybrid_jax.yaml_config import from_command_line


def main() -> None:
    """Read the configuration and train, together with the run's other processes if there are any."""
    config = from_command_line(RunConfig)
    with joined(config.distributed):
        train(config)


if __name__ == "__main__":
    run_script(main)
