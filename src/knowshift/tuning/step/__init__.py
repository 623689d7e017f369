"""Strategies that act at each step, on gradients, weights or the number of steps."""
