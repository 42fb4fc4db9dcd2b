"""What ends a node from outside, SIGTERM or its time limit, told once and as one thing."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

EXIT_TIMEOUT = 124
EXIT_CANCELLED = 143


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

    Attributes:
      interrupted: What the node was interrupted by; None while it was not.
    """

    def __init__(self, timeout: int):
        """Starts to watch."""
        self.interrupted: Interrupted | None = None
        self._late: int | None = None
        self._reason = Interrupted(f"gave up after its {timeout} s (timeout_seconds)", EXIT_TIMEOUT)
        self.resume()
        signal.setitimer(signal.ITIMER_REAL, timeout)

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
