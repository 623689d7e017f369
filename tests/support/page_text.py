"""A page's HTML with its white space made one: what is left differs only where a browser would show a difference."""

from __future__ import annotations

import re

#: Elements that begin and end a line of their own: white space at their edges is not shown.
BLOCKS = (
    "html|head|meta|title|style|body|main|h1|h2|h3|p|ol|ul|li|div|figure|figcaption|table|caption|thead|tbody|tr|th|td"
    "|details|summary|pre"
)
_KEPT = re.compile(r"(<pre>.*?</pre>|<style>.*?</style>|<script.*?</script>|<svg .*?</svg>)", re.DOTALL)
_EDGE = re.compile(rf"\s*(</?(?:{BLOCKS})\b[^>]*>)\s*")


def compact(html: str) -> str:
    """Runs of white space as one space, none beside a block; style sheet, figures and preformatted text untouched."""
    parts = _KEPT.split(html)
    parts[::2] = [_EDGE.sub(r"\1", re.sub(r"\s+", " ", part)) for part in parts[::2]]
    return "".join(parts)
