"""The page and its figures, from tables and findings alone."""
