"""Segmentation of lungs and infections."""
