"""Finding, loading and saving models, and the one encoder of prompts. Imports no levels or studies."""
