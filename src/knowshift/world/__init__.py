"""Invented facts, how often each is written, the corpus, pre-training, the shipped tiny world. Imports no studies."""
