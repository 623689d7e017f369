"""What pages share: templates, tables, figure style, numbers in words. Knows no study, and no model."""
