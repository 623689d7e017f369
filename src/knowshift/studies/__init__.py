"""The grid of cells, running and resuming them. Figures stay out."""
