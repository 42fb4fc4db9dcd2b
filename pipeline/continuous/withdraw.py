"""Withdraws a pushed version in ML Metadata: nothing is trained from it any more.

``python -m pipeline.continuous.withdraw ROOT VERSION``, a process of its own,
so that the watcher stays small.
"""

from __future__ import annotations

import os
import sys


def withdraw(root: str, version: str) -> int:
    """Marks the blessings of the model that was pushed as ``version``.

    Returns:
      How many were marked; 0 where no run of the root pushed it.
    """
    from pipeline import history

    path = history.metadata_path(root)
    if not os.path.exists(path):
        return 0
    store = history.open_store(path)
    marked = 0
    for record in history.runs(store):
        if record.pushed_version != version:
            continue
        for blessing in history.run_outputs(store, record.run_id, "ModelBlessing"):
            blessing.custom_properties["withdrawn"].int_value = 1
            store.put_artifacts([blessing])
            marked += 1
    return marked


if __name__ == "__main__":
    withdraw(*sys.argv[1:])
