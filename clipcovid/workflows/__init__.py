"""What a job does from its config to its report in MLflow."""
