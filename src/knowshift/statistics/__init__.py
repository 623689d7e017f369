"""Estimates and intervals, resampling, honest choices, Holm. Stands on numpy and scipy alone."""
