"""Ways of fine-tuning that are meant to keep knowledge, on equal terms: a class each, with source, settings and cost.

Below :mod:`knowshift.studies` and :mod:`knowshift.api`, above :mod:`knowshift.training`, whose
:class:`~knowshift.training.strategy.Strategy` says at which points a strategy acts.
"""
