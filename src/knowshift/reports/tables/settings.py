"""The columns that say which tuned models a row is about."""

from __future__ import annotations

from knowshift.html.table import Row
from knowshift.reports.evidence.run_folder import MIXED, Setting

SETTING_COLUMNS = ("level", "size", "learning_rate", "control")
DRAW_COLUMNS = ("level", "size", "draw", "learning_rate", "control")
#: Of a restored model: its difference to the model as tuned, and to as many weights restored at random.
CONTRAST_COLUMNS = (
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
    *("minus_random", "minus_random_low", "minus_random_high", "minus_random_p"),
)


def setting_values(setting: Setting) -> Row:
    """The values of :data:`SETTING_COLUMNS`."""
    return (level_of(setting), setting.size, rate_name(setting.learning_rate), setting.control)


def draw_values(setting: Setting, draw: int) -> Row:
    """The values of :data:`DRAW_COLUMNS`."""
    return (level_of(setting), setting.size, draw, rate_name(setting.learning_rate), setting.control)


def level_of(setting: Setting) -> int | str:
    """The mastery level of the training facts, or "mixed"."""
    return "mixed" if setting.level == MIXED else setting.level


def level_words(level: object) -> str:
    """A training level as a table has it (:func:`level_of`, or "mean"), in words."""
    return {"mean": "mean", "mixed": "mixed levels"}.get(str(level), f"level {level}")


def rate_name(learning_rate: float) -> str:
    """A learning rate as tables write it: "1e-05"."""
    return format(learning_rate, "g")
