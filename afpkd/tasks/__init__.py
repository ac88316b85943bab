"""Tasks: what the task loss and the metric are. Classification and detection."""
