"""AtomicPusher: the component."""

from __future__ import annotations

from tfx.components.pusher import component as pusher
from tfx.dsl.components.base import executor_spec

from components.pusher import executor


class AtomicPusher(pusher.Pusher):
    """TFX's Pusher, with the same channels, and an executor that renames."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)
