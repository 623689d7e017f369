"""Sort keys of weights under a criterion, and exact global selection among them. Files stay out."""
