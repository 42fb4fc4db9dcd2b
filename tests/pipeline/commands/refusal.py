"""What every refusal of a command looks like."""

from __future__ import annotations


def clear(code: int, result: tuple[int, str, str], *words: str) -> None:
    """One line on standard error with these words, and this exit code."""
    got, out, err = result
    assert got == code, (out, err)
    lines = [line for line in err.splitlines() if line.startswith("mnist-ae: error: ")]
    assert len(lines) == 1 and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in lines[0], lines[0]
