"""A whole system on this machine: broker, databases, a process for each service."""
