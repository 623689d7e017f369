"""Tables of a bench: strategies against plain fine-tuning, and characteristics of the training facts."""
