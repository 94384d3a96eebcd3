"""The history service: keeps every event, and answers questions about orders."""
