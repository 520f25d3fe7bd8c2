"""Defenses, sorted by when the defender acts."""
