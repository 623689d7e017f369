"""Many draws and greedy answers on a prefix tree, with a cache of its own. Levels stay out."""
