"""What commands and :mod:`knowshift.system.workers` import and read: once, in the process that is forked.

``conftest.py`` has this module imported there.
"""

import gc
from importlib import import_module

from knowshift.facts.sources.load import load_facts

for name in (
    "knowshift.cli.app",
    "knowshift.probing.run",
    "knowshift.studies.run",
    "knowshift.audits.run",
    "knowshift.audits.page.compose",
    "knowshift.training.sft",
    "transformers.models.llama.modeling_llama",
):
    import_module(name)
load_facts("world:tiny")
gc.collect()
gc.freeze()  # it stays: no collection of garbage in a fork looks at it, and copies its memory
