"""Checkpoints and adapters on disk: read in pieces, paired, written. Facts and generation stay out."""
