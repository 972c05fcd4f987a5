"""Scores, intervals, figures and the predictions table: no torch, no Ray, no MLflow here."""
