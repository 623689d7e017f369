"""Loops in C and their binding; what calls them has the same loop in numpy."""
