"""Gaussian mixtures of the features of a class, their number of components chosen by BIC."""
