"""The grid of cells, running and resuming them. Imports no figures."""
