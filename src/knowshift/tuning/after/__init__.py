"""Strategies that change the weights once plain fine-tuning has ended."""
