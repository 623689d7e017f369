"""What pages share: templates, tables, figure style, numbers in words. Studies and models stay out."""
