"""What a fit of a whole ladder comes to: one JSON of results, and tables made from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from hybrid_jax.scaling.fit import Fit
from hybrid_jax.scaling.points import ARCHITECTURES
from hybrid_jax.scaling.published import CONTRADICTIONS, Comparison
from hybrid_jax.scaling.quantization_study import Study
from hybrid_jax.scaling.savings import bootstrap_interval, token_savings

_COEFFICIENTS = ("E", "A", "alpha", "B", "beta")


def ladder_results(
    fits: Mapping[str, Mapping[str, Fit]],
    budgets: Sequence[float],
    reference: str,
    target_loss: float,
    sizes: Sequence[float],
) -> dict[str, Any]:
    """Coefficients, frontier and savings with 95% bootstrap intervals, as plain JSON values.

    Args:
        fits: "free" and "fixed" -> architecture -> fit.
        budgets: C = 6 N D, in FLOPs.
        reference: the architecture that savings are over.
        target_loss: of the savings.
        sizes: N of the savings.
    """
    return {
        kind: {
            name: {
                "num_points": len(fit.points),
                "horizons": sorted({each.horizon for each in fit.points}),
                "r_squared": fit.r_squared,
                "coefficients": {
                    each: _estimate(getattr(fit.law, each), getattr(fit.resampled, each))
                    for each in _COEFFICIENTS
                },
                "frontier": [_optimum(fit, flops) for flops in budgets],
                "savings": [_savings(fit, group.get(reference), target_loss, size) for size in sizes],
            }
            for name, fit in group.items()
        }
        for kind, group in fits.items()
    }


def ladder_tables(results: Mapping[str, Any], reference: str, target_loss: float) -> Iterator[Table]:
    """Three tables for each kind of fit: coefficients, frontier, savings."""
    for kind, group in results.items():
        table = _table(
            f"{kind} exponents: L = E + A/N^alpha + B/D^beta", ("", *_COEFFICIENTS, "R2", "points")
        )
        for name, fit in group.items():
            cells = [_interval(fit["coefficients"][each], ".4g", "\n") for each in _COEFFICIENTS]
            table.add_row(ARCHITECTURES[name], *cells, f"{fit['r_squared']:.4f}", str(fit["num_points"]))
        yield table
        title = f"{kind} exponents: the optimum of a budget C = 6 N D"
        table = _table(
            title, ("FLOPs", *(f"{ARCHITECTURES[name]}\n{each}" for name in group for each in ("N*", "loss")))
        )
        for row in zip(*(fit["frontier"] for fit in group.values()), strict=True):
            cells = [
                cell for each in row for cell in (f"{each['num_params']:.2e}", _interval(each["loss"], ".2f"))
            ]
            table.add_row(f"{row[0]['flops']:.0e}", *cells)
        yield table
        if reference not in group or len(group) == 1:
            continue
        title = (
            f"{kind} exponents: tokens of {ARCHITECTURES[reference]} over theirs, to loss {target_loss:.4g}"
        )
        others = [name for name in group if name != reference]
        table = _table(title, ("N", *(ARCHITECTURES[name] for name in others)))
        for row in zip(*(group[name]["savings"] for name in others), strict=True):
            cells = [_interval(each["savings"], ".2f") for each in row]
            table.add_row(f"{row[0]['num_params']:.3g}", *cells)
        yield table


def published_table(rows: Sequence[Comparison]) -> Table:
    """The paper's numbers beside ours."""
    columns = ("", "", "printed", "from the digits", "rounding allows", "allowed", "one law")
    table = _table("arXiv 2604.03444: printed numbers and printed coefficients", ("", *columns))
    for each in rows:
        digits = max(2, len(each.printed.digits.partition(".")[2]) + 1)
        ours, low, high, best = (
            f"{value:.{digits}f}" for value in (each.ours, each.low, each.high, each.unrounded)
        )
        allowed = "yes" if each.allowed else "NO"
        name = ARCHITECTURES[each.architecture]
        table.add_row(
            name, each.quantity, each.at, each.printed.digits, ours, f"{low} .. {high}", allowed, best
        )
    return table


def contradictions_table() -> Table:
    """Where the paper disagrees with itself."""
    table = Table(title="where the paper disagrees with itself", show_header=False, show_lines=True)
    for text in CONTRADICTIONS:
        table.add_row(text)
    return table


def published_results(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The same as plain JSON values."""
    return [
        {
            "architecture": each.architecture,
            "quantity": each.quantity,
            "at": each.at,
            "printed": each.printed.digits,
            "ours": each.ours,
            "low": each.low,
            "high": each.high,
            "allowed": each.allowed,
            "unrounded": each.unrounded,
        }
        for each in rows
    ]


def quantization_table(studies: Sequence[Study]) -> Table:
    """Power laws through simulated losses beside Theorem 4."""
    columns = ("an inexpressible task", "share", "irreducible", "A", "alpha", "B", "beta")
    table = _table("quantization model: simulated (by Theorem 4)", columns)
    for each in studies:
        cells = (f"{m:.3f} ({t:.3f})" for m, t in zip(each.measured, each.theory, strict=True))
        table.add_row(each.world, f"{each.share:.0%}", *cells)
    return table


def quantization_results(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """The same as plain JSON values."""
    return [
        {
            "world": each.world,
            "share": each.share,
            "measured": {name: float(value) for name, value in each.measured._asdict().items()},
            "theory": {name: float(value) for name, value in each.theory._asdict().items()},
        }
        for each in studies
    ]


def _optimum(fit: Fit, flops: float) -> dict[str, Any]:
    best = fit.law.optimum(flops)
    return {
        "flops": flops,
        "num_params": float(best.num_params),
        "tokens": float(best.tokens),
        "loss": _estimate(best.loss, fit.resampled.optimum(flops).loss),
    }


def _savings(fit: Fit, base: Fit | None, loss: float, size: float) -> dict[str, Any]:
    found: dict[str, Any] = {"num_params": size, "tokens": _finite(fit.law.tokens_for_loss(size, loss))}
    if base:
        samples = token_savings(base.resampled, fit.resampled, size, loss)
        found["savings"] = _estimate(token_savings(base.law, fit.law, size, loss), samples)
    return found


def _estimate(value: Any, samples: Any) -> dict[str, float | None]:
    low, high = bootstrap_interval(np.asarray(samples))
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: Any) -> float | None:
    """JSON has no infinity: what no number of tokens reaches is null."""
    return float(value) if math.isfinite(value) else None


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _interval(estimate: Mapping[str, float | None], style: str, separator: str = " ") -> str:
    value, low, high = (_number(estimate[each], style) for each in ("value", "low", "high"))
    if low == high == value:  # was given, or is nowhere reached
        return value
    return f"{value}{separator}[{low}, {high}]"
