"""What pages share: figure style, tables, numbers in words. Knows no study, and no model."""
