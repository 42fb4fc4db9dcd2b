"""Validates a model as a server will use it, and blesses it for the Pusher."""
