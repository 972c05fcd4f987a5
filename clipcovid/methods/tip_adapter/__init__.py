"""Tip-Adapter-F."""
