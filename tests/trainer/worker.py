"""One worker of a training, run as a script by tests: it may stop itself at a given point.

    python worker.py JOB.json|"" POINT|""

POINT is ``SIGNAL:EPOCHS:CALLS``: the signal that the process sends itself when that many epochs of
the training are done, counted through all phases, and that many calls of the training function in
the next one. A checkpoint is written after every epoch, so that nothing depends on the machine's
speed.
"""

from __future__ import annotations

import os
import signal
import sys

from trainer import checkpoint, run_fn


def stop_at(point: str) -> None:
    """Sends this process a signal when the training gets to the point."""
    name, epochs, calls = point.split(":")

    class Stopping(checkpoint.Checkpointer):
        def on_epoch_begin(self, epoch, logs=None):
            self.calls = 0
            self.arrive()

        def on_train_batch_end(self, batch, logs=None):
            self.calls += 1
            self.arrive()

        def arrive(self):
            if (len(self.history), self.calls) == (int(epochs), int(calls)):
                os.kill(os.getpid(), signal.Signals[name])

    run_fn.Checkpointer = Stopping


if __name__ == "__main__":
    job_file, point = sys.argv[1:]
    checkpoint.Checkpointer.__init__.__kwdefaults__["min_seconds"] = 0.0
    if point:
        stop_at(point)
    run_fn.main([job_file] if job_file else [])
