"""Gaussian mixtures of the features of a class, where BIC chooses the number of components."""
