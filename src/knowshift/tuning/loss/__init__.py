"""Strategies with another loss of each token."""
