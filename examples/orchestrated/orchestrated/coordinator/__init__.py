"""Takes orders, and has the others carry them out: it alone knows the order of the steps."""
