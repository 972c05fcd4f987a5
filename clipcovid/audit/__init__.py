"""Whether a data set is fit to learn from, and to be tested on: leaks, shortcuts, and what encoders may have seen of it."""
