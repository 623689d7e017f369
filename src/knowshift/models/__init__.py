"""Finding, loading and saving models, and the one encoder of prompts. Levels and studies stay out."""
