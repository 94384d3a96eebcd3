"""The dashboards as code. `python -m monitoring.dashboards` writes them for Grafana to load."""
