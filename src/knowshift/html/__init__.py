"""What pages share: templates, tables, figure style, numbers in words. Imports no studies or models."""
