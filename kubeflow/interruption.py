"""What ends a node from outside, SIGTERM or its time limit, told once and as one thing."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_logger = logging.getLogger(__name__)

EXIT_TIMEOUT = 124
EXIT_CANCELLED = 143
# How long the end of a cancelled node waits for what is done at once.
_TOLD_SECONDS = 10.0


class Interrupted(BaseException):
    """The node was cancelled or ran out of time.

    No Exception, so that nothing on the way takes it for a component's error.
    """

    def __init__(self, reason: str, exit_code: int):
        super().__init__(reason)
        self.exit_code = exit_code


class Watch:
    """Turns SIGTERM and a time limit into :class:`Interrupted`.

    It is raised again every second until :meth:`settle`: where Python ignores
    exceptions (in destructors, say) the first one would be lost. What arrives
    may be another error: Beam puts its own in the place of whatever it meets,
    at times with nothing of it but the text, and so does a library that is half
    imported. Hence ``interrupted`` is what counts.

    Where the container ends within a second of SIGTERM (Argo's executor, whose child KFP's launcher
    dies of it), the main thread may be in a library for longer: ``on_cancel`` is called at once, in
    a thread of its own.

    Attributes:
      interrupted: What the node was interrupted by; None while it was not.
      on_cancel: What is to be done at SIGTERM, before anything else.
    """

    def __init__(self, timeout: int):
        """Starts to watch."""
        self.interrupted: Interrupted | None = None
        self.on_cancel: Callable[[], None] = lambda: None
        self._told = threading.Event()
        self._late: int | None = None
        self._reason = Interrupted(f"gave up after its {timeout} s (timeout_seconds)", EXIT_TIMEOUT)
        signals, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        threading.Thread(target=self._listen, args=(signals,), daemon=True).start()
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        self.resume()
        signal.setitimer(signal.ITIMER_REAL, timeout)

    def _listen(self, signals: int) -> None:
        while number := os.read(signals, 1):
            if number[0] == signal.SIGTERM:
                try:
                    self.on_cancel()
                except Exception as e:
                    _logger.warning("cancelled, and the store does not know: %s", e)
                self._told.set()
        os.close(signals)

    def wait_told(self) -> None:
        """Waits until ``on_cancel`` is done, where it is called."""
        if self.interrupted and self.interrupted.exit_code == EXIT_CANCELLED:
            self._told.wait(_TOLD_SECONDS)

    def resume(self) -> None:
        """Watches on after :meth:`settle`.

        Raises:
          Interrupted: What came meanwhile, and now counts.
        """
        signal.signal(signal.SIGTERM, self._cancel)
        signal.signal(signal.SIGALRM, self._interrupt)
        if self._late is not None:
            signal.raise_signal(self._late)

    def settle(self) -> None:
        """Lets what follows run undisturbed until :meth:`resume`: what is decided stays so."""
        self._handle(self._note)

    def end(self) -> None:
        """Watches no more, to the end of the process."""
        self._handle(signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(self._pipe)

    def _handle(self, handler: Any) -> None:
        while True:
            # Either call may still run the handler of a signal that came before it.
            with contextlib.suppress(Interrupted):
                signal.signal(signal.SIGTERM, handler)
                signal.signal(signal.SIGALRM, handler)
                return

    def _note(self, signum: int, frame: Any) -> None:
        self._late = signum

    def _cancel(self, signum: int, frame: Any) -> NoReturn:
        self._reason = Interrupted("cancelled (SIGTERM)", EXIT_CANCELLED)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._interrupt(signum, frame)

    def _interrupt(self, signum: int, frame: Any) -> NoReturn:
        self.interrupted = self._reason
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise self.interrupted


@contextlib.contextmanager
def watched(timeout: int) -> Iterator[Watch]:
    """A :class:`Watch` over a block, which ends with :class:`Interrupted` where it was.

    Args:
      timeout: Seconds that the block has; 0 is any number.
    """
    watch = Watch(timeout)
    try:
        yield watch
    except Exception as e:
        if watch.interrupted is None:
            raise
        raise watch.interrupted from e
    finally:
        watch.end()
