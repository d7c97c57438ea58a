"""The gated delta rule on this GPU: whether it is right, then how fast, beside what else is installed.

python scripts/bench_gdn.py                   on a Hopper GPU; beside fla, flash_qla and flashinfer where they import
python scripts/bench_gdn.py --wheels FOLDER   with wheels of them, and of anything else that the machine lacks
python scripts/bench_gdn.py --interpret       without a GPU: all of it, tiny and interpreted; times mean nothing

Runs from a checkout, with jax, numpy and jaxtyping and without network. Ends with exit code 1 if the kernels are wrong
anywhere. docs/kernels.md says what is checked and timed, and which wheels to bring.
"""

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

PARTS = ("conformance", "decoding", "speed", "accuracy")


def main() -> None:
    """Run the parts asked for; all there is to say goes to standard output, row by row."""
    flags = parse_flags()
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # nothing need be installed
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same GPU
    if flags.interpret:
        # Blocks of a kernel wait for each other in threads of XLA's pool, which without it has one for each core.
        os.environ.setdefault("NPROC", "32")
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            if flags.wheels is not None:
                import_from(flags.wheels, Path(unpacked))
            problems = run(flags)
    except (OSError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}")
    if problems:
        sys.exit(f"error: the kernels are wrong in {len(problems)} places, the first: {problems[0]}")


def parse_flags() -> argparse.Namespace:
    """The command line; by argparse, as tyro may come in the wheels or not at all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpret", action="store_true", help="tiny, on a CPU")
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="wheels to import from what is not installed"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSON of all figures, written anew with each row"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all, unless named")
    return parser.parse_args()


def import_from(wheels: Path, folder: Path) -> None:
    """Unpack the wheels and look there for what is not installed."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        sys.exit(f"error: --wheels: found no *.whl in {wheels}")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    sys.path.append(str(folder))


def run(flags: argparse.Namespace) -> list[str]:
    """What is wrong, in words. Imports what needs jax, which the wheels may have brought something for."""
    import jax

    from pallas_kernels.gated_delta_rule import dispatch
    from scripts.gdn_bench.conformance import conformance
    from scripts.gdn_bench.others import LOADERS
    from scripts.gdn_bench.report import Report, attempt
    from scripts.gdn_bench.settings import Settings
    from scripts.gdn_bench.speed import accuracy, decoding, speed

    refusal = dispatch.gpu_refusal()
    if refusal is not None and not (flags.interpret and jax.__version_info__ >= (0, 11)):
        sys.exit(f"error: {refusal}; --interpret runs without")
    settings = Settings(interpret=flags.interpret)
    loaded = {name: attempt(f"without {name}", load) for name, load in LOADERS.items()}
    others = {name: op for name, (op, _) in loaded.items() if op is not None}
    header = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        **{name: op.version for name, op in others.items()},
    }
    report = Report(flags.output, header)
    report.say(", ".join(f"{name} {version}" for name, version in header.items()))
    for _, reasons in loaded.values():
        for reason in reasons:
            report.say(reason)
    parts: dict[str, Callable[[], None]] = {
        "conformance": lambda: conformance(settings, report),
        "decoding": lambda: decoding(settings, report),
        "speed": lambda: speed(settings, report, others),
        "accuracy": lambda: accuracy(settings, report, others),
    }
    with interpreted() if flags.interpret else nullcontext():
        for name in PARTS:
            if name in flags.parts:
                parts[name]()
    return report.problems


def interpreted() -> Any:
    """A context in which kernels are interpreted on the CPU, and taken as if a GPU were there."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    from pallas_kernels.gated_delta_rule import dispatch

    dispatch.gpu_refusal = lambda: None
    return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams())


if __name__ == "__main__":
    main()
