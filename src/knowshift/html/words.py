"""How numbers, intervals and lists are written in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from knowshift.statistics.estimates import Estimate

DOMAIN_WORDS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain", "both": "both domains"}


def percent(value: float, digits: int = 1) -> str:
    """A proportion as a percentage, "41.7%"."""
    return "missing" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def in_percent(value: float) -> str:
    """A proportion in percent, whose sign stands in a caption: "41.7"."""
    return f"{100 * value:.1f}"


def exact_percent(fraction: float) -> str:
    """A fraction from a configuration, with all its digits: "20%", "0.1%"."""
    return f"{100 * fraction:g}%"


def signed(value: float, scale: float = 100, digits: int = 1) -> str:
    """A signed number with a real minus sign; never "-0.0"."""
    text = f"{scale * value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval_words(estimate: Estimate, scale: float = 100, digits: int = 1) -> str:
    """The interval in words: "1.2 to 3.4"."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "no interval"
    return f"{signed(estimate.low, scale, digits)} to {signed(estimate.high, scale, digits)}"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def p_value(p: float) -> str:
    """A p-value to three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
