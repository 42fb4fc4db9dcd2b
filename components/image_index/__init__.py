"""Codes of all images, searchable, and what they are worth."""
