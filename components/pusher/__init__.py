"""AtomicPusher: TFX's Pusher with versions that appear whole or not at all."""

from components.pusher.component import AtomicPusher

__all__ = ["AtomicPusher"]
