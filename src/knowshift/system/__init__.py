"""The machine, Python, and private parts of libraries. Imports no facts or models."""
