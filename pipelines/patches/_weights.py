"""Weights by which what was computed at earlier steps forecasts what would be computed now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial, prod


def taylor(steps: Sequence[int], now: int) -> list[float]:
    """Weights of what was added at `steps`, newest first: sum of (now - newest)^i / i! times the i-th difference."""
    ahead = now - steps[0]
    terms = [ahead**i / factorial(i) for i in range(len(steps))]
    return _summed(terms, _differences(steps, lambda i, j: steps[j] - steps[j + 1]))


def newton(steps: Sequence[int], now: int) -> list[float]:
    """The same of the polynomial through all of them, by divided differences."""
    terms = [float(prod(now - step for step in steps[:i])) for i in range(len(steps))]
    return _summed(terms, _differences(steps, lambda i, j: steps[j] - steps[j + i]))


def _differences(steps: Sequence[int], gap: Callable[[int, int], int]) -> list[list[float]]:
    """The i-th difference at the newest step, as weights of what was added at each step."""
    rows = [[float(i == j) for j in range(len(steps))] for i in range(len(steps))]
    found = [rows[0]]
    for i in range(1, len(steps)):
        rows = [
            [(a - b) / gap(i, j) for a, b in zip(rows[j], rows[j + 1], strict=True)]
            for j in range(len(rows) - 1)
        ]
        found.append(rows[0])
    return found


def _summed(terms: Sequence[float], rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(term * row[j] for term, row in zip(terms, rows, strict=True)) for j in range(len(rows[0]))]
