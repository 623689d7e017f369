"""Strategies of several parts, as the bench found them to go best together."""
