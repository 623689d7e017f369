"""Every table that is written as CSV and LaTeX. Imports no pages."""
