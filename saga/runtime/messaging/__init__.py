"""The broker: what is declared on it, how messages come in, how they go out."""
