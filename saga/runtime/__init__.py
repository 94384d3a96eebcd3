"""What runs in a service's process: its kernel, its messaging, its HTTP side, and its life."""
