"""Sort keys of weights under a criterion, and exact global selection among them. Imports no files."""
