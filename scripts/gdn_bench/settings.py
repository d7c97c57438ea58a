"""What is run: on a Hopper GPU, or tiny where kernels are interpreted."""

from dataclasses import dataclass
from typing import Any

Arrays = dict[str, Any]
# K and V of OLMo Hybrid, and the commonest.
OLMO_HYBRID, COMMON = (96, 192), (128, 128)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of everything.

    Attributes:
        interpret: tiny, for a CPU.
    """

    interpret: bool

    @property
    def num_seeds(self) -> int:
        """Random inputs that the kernels must be right on, each twice; every other one holds documents."""
        return 2 if self.interpret else 20

    @property
    def hard_stride(self) -> int:
        """One in how many hard inputs is taken; tests interpret the kernels on all of them."""
        return 4 if self.interpret else 1

    @property
    def rounds(self) -> int:
        """Samples of a timing, if they are fast."""
        return 1 if self.interpret else 10

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """K, V and heads that are timed."""
        return [(32, 64, 1)] if self.interpret else [(*OLMO_HYBRID, 30), (*COMMON, 32)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Rows and tokens in each that are timed; the product is the same throughout."""
        return [(1, 64)] if self.interpret else [(8, 8192), (2, 32_768), (1, 65_536)]

    @property
    def tuned_dims(self) -> list[tuple[int, int]]:
        """K and V that are checked on everything."""
        return [(key_dim, value_dim) for key_dim, value_dim, _ in self.shapes]

    @property
    def other_dims(self) -> list[tuple[int, int]]:
        """K and V that are checked once: padded, and the largest; interpreted, those that are compiled already."""
        return self.tuned_dims if self.interpret else [(64, 64), (72, 72), (256, 256)]

    @property
    def decode_dims(self) -> list[tuple[int, int]]:
        """K and V of decoding that is checked."""
        return [(8, 64)] if self.interpret else [(64, 64), (72, 72), (256, 256), *self.tuned_dims]

    @property
    def checked(self) -> tuple[int, int]:
        """Rows and tokens of checks: the last chunk is not full, and there are more than are prefetched."""
        return (1, 70) if self.interpret else (8, 450)

    @property
    def checked_heads(self) -> tuple[int, int]:
        """Heads of keys and values: several of these share one of those."""
        return (1, 2) if self.interpret else (2, 4)

    @property
    def decode_batches(self) -> list[int]:
        """Sequences that are continued at once."""
        return [2] if self.interpret else [1, 16, 128]
