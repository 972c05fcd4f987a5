"""Linear and MLP probes."""
