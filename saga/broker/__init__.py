"""Setting up a broker, and what it holds. For operators: services declare nothing."""
