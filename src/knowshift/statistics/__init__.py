"""Estimates and intervals, resampling, honest choices, Holm. Depends on numpy and scipy alone."""
