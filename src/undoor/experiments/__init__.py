"""Experiments: attack a training set, train a victim on it, and measure what each defense finds and repairs."""
