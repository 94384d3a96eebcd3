"""Books rooms at the hotel."""
