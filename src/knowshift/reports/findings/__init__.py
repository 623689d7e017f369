"""The four findings of the paper, each tested on the evidence. Imports no pages."""
