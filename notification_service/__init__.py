"""Mails customers how their orders ended, and never twice by itself."""
