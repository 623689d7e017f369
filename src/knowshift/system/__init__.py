"""What is asked of the machine, of Python and of the insides of libraries. Knows nothing of facts or models."""
