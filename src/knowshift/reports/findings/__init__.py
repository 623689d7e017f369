"""The four findings of the paper, each looked for in the evidence. Pages stay out."""
