"""Where facts come from: published sets, tables, worlds. Depends on :mod:`knowshift.facts`."""
