"""Keeps the shelf: checks prices, holds stock for orders, gives it back."""
