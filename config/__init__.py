"""Settings, logging and every Prometheus metric. Imports no other room."""
