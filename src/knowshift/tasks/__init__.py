"""Tasks beside closed-book questions: those of lm-eval, the loss on texts, and what a world's own sentences ask."""
