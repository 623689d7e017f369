"""Facts, relations with prompts, the grading of a text. Imports no models, torch or transformers."""
