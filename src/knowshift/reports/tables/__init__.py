"""Every table that is written as CSV. Pages stay out."""
