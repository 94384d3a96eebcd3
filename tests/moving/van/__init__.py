"""Rents vans."""
