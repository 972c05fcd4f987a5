"""Embeddings, zero-shot classification and what else runs a finished model over data."""
