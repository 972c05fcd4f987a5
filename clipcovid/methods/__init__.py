"""Kinds of learning: model, loss and predictions of each."""
