"""What watches a running system: rules for Prometheus, dashboards for Grafana."""
