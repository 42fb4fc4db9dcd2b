"""What a report is made of: figures, the exported model, the images and their codes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from components import features
from serving import contract
from serving.client import ReconstructionClient
from serving.images import to_bytes

Columns = dict[str, np.ndarray]

# Images a row of examples.
TEN = 10


@dataclasses.dataclass(frozen=True)
class Material:
    """What the sections are made of.

    Attributes:
      summary: What ``summary.json`` holds; every figure shown is one of its.
      metadata: What the model says of itself.
      training: The Trainer's ``training.json``.
      model: The exported model, in this process.
      evaluation: Columns of the index's eval split.
      train: Columns of its train split.
      held_out: Columns of its held-out split, {} without one.
    """

    summary: dict[str, Any]
    metadata: dict[str, Any]
    training: dict[str, Any]
    model: ReconstructionClient
    evaluation: Columns
    train: Columns
    held_out: Columns

    @property
    def sampled(self) -> str:
        """A sentence on how much of the data is looked at, empty where it is all of them."""
        whole = self.summary["dataset"]
        parts = [
            f"{len(columns[features.LABEL]):,} of {whole[split]:,} {split} images"
            for split, columns in (
                (features.EVAL_SPLIT, self.evaluation),
                (features.TRAIN_SPLIT, self.train),
            )
            if len(columns[features.LABEL]) < whole[split]
        ]
        if not parts:
            return ""
        return f" This page is drawn from {' and '.join(parts)}, chosen at random."

    def can(self, ability: str) -> bool:
        """Whether the model has an ability, which is called as its signature."""
        return ability in self.metadata["abilities"]

    def reconstruct(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 28, 28] to reconstructions of the same kind, and errors [n]."""
        answer = self.model.reconstruct(images)
        return to_bytes(answer.images), answer.error

    @property
    def metrics(self) -> dict[str, Any]:
        """The summary's metrics."""
        return self.summary["metrics"]

    @property
    def images(self) -> np.ndarray:
        """Images of the eval split, uint8 [n, 28, 28]."""
        return self.evaluation[features.IMAGE]

    @property
    def labels(self) -> np.ndarray:
        """Digits of the eval split, int64 [n], -1 where unknown."""
        return self.evaluation[features.LABEL]

    @property
    def errors(self) -> np.ndarray:
        """Reconstruction errors of the eval split, float [n]."""
        return self.evaluation[contract.RECONSTRUCTION_ERROR]

    @property
    def anomaly_scores(self) -> np.ndarray:
        """Anomaly scores of the eval split, float [n]."""
        return self.evaluation[contract.ANOMALY_SCORE]

    @property
    def codes(self) -> np.ndarray:
        """Codes of the eval split, float [n, d]."""
        return self.evaluation[contract.CODE]

    @property
    def digits(self) -> list[int]:
        """The digits that occur in the eval split, ascending; empty without labels."""
        return [int(digit) for digit in np.unique(self.labels) if digit >= 0]

    def digit_names(self, rows: np.ndarray) -> list[str]:
        """A word for each of some eval images: its digit; [] where none is known."""
        return [str(d) if d >= 0 else "" for d in self.labels[rows]] if self.digits else []

    def sample(self, seed: int = 0) -> np.ndarray:
        """Rows of ten eval images: one of every digit where there are labels."""
        rng = np.random.default_rng(seed)
        if not self.digits:
            return rng.choice(len(self.images), min(TEN, len(self.images)), replace=False)
        rows = [rng.choice(np.flatnonzero(self.labels == digit)) for digit in self.digits]
        more = rng.permutation(len(self.images))
        rows += [row for row in more if row not in rows][: TEN - len(rows)]
        return np.array(rows)
