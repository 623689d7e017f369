"""Loops in C and their binding; every caller has the same loop in numpy."""
