"""Every table that is written as CSV. Imports no pages."""
