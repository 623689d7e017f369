"""Two sets of weights, compared, ranked exactly, restored. Facts and generation stay out."""
