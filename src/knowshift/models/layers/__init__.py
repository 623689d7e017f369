"""Whole decoder layers computed by few operations, forward and backward, with the results of transformers' code."""
