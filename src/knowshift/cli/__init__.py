"""The commands: options, messages, and calls of :mod:`knowshift.api`. Nothing imports it."""
