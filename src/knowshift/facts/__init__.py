"""Facts, relations with prompts, the grading of a text. Knows no model: torch and transformers stay out."""
