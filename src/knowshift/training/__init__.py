"""Drawing training sets and training on them. Evaluation and studies stay out."""
