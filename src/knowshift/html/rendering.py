"""Pages from Jinja2 templates: every value is escaped as it is written, and a value that is not given is an error.

The templates of this package are what pages share: ``document.html.jinja`` (head, style sheet, body), which a page
extends, and the macros of ``parts.html.jinja`` (a table, a verdict). What one page alone has lies in the
folder ``templates`` of its own package.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


@lru_cache
def environment(package: str = "knowshift.html") -> Environment:
    """The templates of a package, then those that pages share."""
    packages = dict.fromkeys((package, "knowshift.html"))
    found = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["thousands"] = lambda number: f"{number:,}"
    found.filters["counted"] = lambda number, noun: f"{number} {noun}{'' if number == 1 else 's'}"
    return found


def render(package: str, template: str, **values: Any) -> str:
    """The text of a template of ``package`` with these values."""
    return environment(package).get_template(template).render(**values)
