"""Experiments: attack, victim, defence and retraining, measured."""
