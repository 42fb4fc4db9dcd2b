"""The stand-in for TensorFlow Serving: its protocol where only TensorFlow is there.

A request's way: :mod:`~serving.standin.grpc_api` or :mod:`~serving.standin.rest_api`
reads it, :mod:`~serving.standin.handlers` says what it means,
:mod:`~serving.standin.models` lends the version, :mod:`~serving.standin.predict`
checks the inputs, :mod:`~serving.standin.servable` runs the graph.
:mod:`~serving.standin.server` starts and stops it all.
"""
