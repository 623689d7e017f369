"""How `make docs` builds the site: Sphinx reads the Markdown of this folder, which also reads on GitHub as it is."""

from __future__ import annotations

import re
from inspect import isclass
from pydoc import locate

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

import knowshift

project = "knowshift"
author = "The knowshift authors"
version = release = knowshift.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True
#: Names of other packages. For ours see `known_here`.
nitpick_ignore_regex = [(r"py:.*", r"(?!knowshift\.).*")]

myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_digits = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "knowshift"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = "mathml"

#: What the verbs return.
RESULTS = (
    "knowshift.facts.sources.load.FactSource",
    "knowshift.models.loading.LoadedModel",
    "knowshift.api.measures.Mastery",
    "knowshift.api.measures.Evaluation",
    "knowshift.api.measures.Shift",
    "knowshift.api.tuning.FineTuned",
    "knowshift.api.change.WeightComparison",
    "knowshift.parameters.change.WeightChange",
    "knowshift.parameters.files.restored.Restoration",
    "knowshift.api.studies.Study",
    "knowshift.api.studies.StudyPlan",
    "knowshift.api.studies.Report",
)
#: What the verbs stand on, for work that they do not cover.
GROUND = (
    "knowshift.facts.fact",
    "knowshift.probing.measure",
    "knowshift.evaluation",
    "knowshift.token_shift",
    "knowshift.parameters.restore",
    "knowshift.statistics.estimates",
)


def contents(front: str) -> str:
    """The sections of the front page that list pages, as tables of contents: the list is written once, for people."""
    made = []
    for section in front.split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        pages = re.findall(r"^- \[[^\]]+\]\((\w+)\.md\)", text, re.MULTILINE)
        if pages:
            made += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(made)


def api() -> str:
    """Directives for the verbs, for what they return, and for the modules that they stand on."""
    lines = ["```{eval-rst}", "Verbs", "-----", ""]
    for name in sorted(knowshift.__all__, key=lambda name: (isclass(getattr(knowshift, name)), name)):
        if not name.startswith("_"):
            kind = "autoclass" if isclass(getattr(knowshift, name)) else "autofunction"
            lines += [f".. {kind}:: knowshift.{name}", ""]
    lines += ["Results", "-------", ""]
    for name in RESULTS:
        lines += [f".. autoclass:: {name}", "   :members:", "   :inherited-members:", ""]
    for name in GROUND:
        lines += [name, "-" * len(name), "", f".. automodule:: {name}", "   :members:", ""]
    return "\n".join([*lines, "```"])


def add_what_is_generated(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "index":
        source[0] += "\n" + contents(source[0])
    elif page == "api":
        source[0] += "\n" + api()


def escape_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings write |s - p| for absolute values, where reStructuredText sees a substitution."""
    lines[:] = ["".join(_escaped(part) for part in re.split(r"(``.*?``)", line)) for line in lines]


def _escaped(part: str) -> str:
    return part if part.startswith("``") else part.replace("|", r"\|")


def known_here(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """Docstrings may name what no page documents, but not what does not exist."""
    target = node.get("reftarget", "")
    return shown if target.startswith("knowshift.") and locate(target) is not None else None


def inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    # MathML, which browsers show by themselves: the site needs no network.
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("source-read", add_what_is_generated)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("missing-reference", known_here)
