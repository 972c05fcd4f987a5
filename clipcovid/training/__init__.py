"""One training loop, its state on disk, and how it runs on Ray Train."""
