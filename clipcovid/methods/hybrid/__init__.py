"""A CNN joined with a frozen CLIP."""
