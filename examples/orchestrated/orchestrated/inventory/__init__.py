"""Keeps the shelf: checks prices, holds stock when it is told to, gives it back when told."""
