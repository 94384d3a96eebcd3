"""Takes requests for trips, has them booked, and says how each ended."""
