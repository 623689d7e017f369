"""Checkpoints and adapters on disk: read in pieces, paired, written. Imports no facts or generation."""
