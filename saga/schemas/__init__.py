"""The schemas of what travels, as files: made from the event classes, released, and compared."""
