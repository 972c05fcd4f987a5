"""The kinds of predictions, a file each: their columns, scores, tables, figures and comparisons. See `base.Kind`."""
