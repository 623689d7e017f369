"""Drawing training sets and training on them. Imports no evaluation or studies."""
