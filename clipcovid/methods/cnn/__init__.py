"""A timm image classifier."""
