"""Completions servers: connection, dialects, sessions. Levels stay out."""
