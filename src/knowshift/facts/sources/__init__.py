"""Where facts come from: published sets, tables, worlds. Stands on :mod:`knowshift.facts`."""
