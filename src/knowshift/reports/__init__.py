"""Tables, figures and findings from the records of a study. Does not import torch."""
