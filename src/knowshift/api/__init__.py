"""The verbs of the commands as functions: what :mod:`knowshift` offers and the commands call. Nothing is printed."""
