"""Two sets of weights, compared, ranked exactly, restored. Imports no facts or generation."""
