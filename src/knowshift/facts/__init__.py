"""Facts, relations with prompts, the grading of a text. Models, torch and transformers stay out."""
