"""Data: sources, decoding, the manifest and the packed images."""
