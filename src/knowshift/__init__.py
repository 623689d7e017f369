"""knowshift: what fine-tuning did to what a language model knows, and how to repair it."""

__version__ = "0.1.0"
