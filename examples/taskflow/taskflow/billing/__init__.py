"""Has users pay for their tasks."""
