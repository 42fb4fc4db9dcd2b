"""Composes the steps and runs them on this machine; the ``mnist-ae`` command."""
