"""Builders of models, and nothing else."""
