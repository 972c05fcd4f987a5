"""Train, compare and trust CLIP on chest X-rays, at scale, on Ray. Research use only, not for diagnosis."""

__version__ = "0.1.0"
