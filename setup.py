"""Shim for Beam's ``--setup_file`` and ``pip install .``; metadata is in pyproject.toml."""

from setuptools import setup

setup()
