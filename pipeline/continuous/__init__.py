"""Continuous retraining: spans in, decisions, runs, pushes, one after the other."""
