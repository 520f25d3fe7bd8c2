"""Defences, sorted by when the defender acts."""
