"""MLflow, and the only place that imports it. What it shows stands in the run folder first; without it, work goes on."""
