"""The dashboards as code. `python -m monitoring.dashboards` writes them into the engine, from where
`saga generate` brings them into any project."""
