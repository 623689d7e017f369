"""What a tuning was for: a user's questions or text, and tasks of lm-eval; a repair must keep it."""
