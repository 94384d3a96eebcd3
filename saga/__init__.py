"""The operator's command `saga`, and what it is made of."""
