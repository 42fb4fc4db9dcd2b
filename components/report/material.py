"""What a report is made of: figures, the exported model, the images and their codes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from components import features
from serving import contract
from serving.images import to_bytes
from serving.uses.shards import load_model

Columns = dict[str, np.ndarray]

# Images a row of examples.
TEN = 10


class ExportedModel:
    """The exported model's signatures on arrays."""

    def __init__(self, path: str):
        """Takes the SavedModel at ``path``."""
        self._signatures = load_model(path).signatures

    def can(self, signature: str) -> bool:
        """Whether it has a signature."""
        return signature in self._signatures

    @property
    def decodes_labels(self) -> bool:
        """Whether the decoder is told the digit."""
        arguments = self._signatures[contract.DECODE].structured_input_signature[1]
        return contract.LABEL in arguments

    def reconstruct(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 28, 28] to reconstructions of the same kind, and errors [n]."""
        answer = self._signatures[contract.RECONSTRUCT](images=tf.constant(images))
        shown = to_bytes(answer[contract.RECONSTRUCTION].numpy())
        return shown, answer[contract.RECONSTRUCTION_ERROR].numpy()

    def decode(self, codes: np.ndarray, digits: np.ndarray | None = None) -> np.ndarray:
        """Codes [n, d], and digits [n] where it needs them, to images uint8 [n, 28, 28]."""
        arguments = {contract.CODE: tf.constant(codes, tf.float32)}
        if self.decodes_labels:
            arguments[contract.LABEL] = tf.constant(digits, tf.int64)
        answer = self._signatures[contract.DECODE](**arguments)
        return to_bytes(answer[contract.RECONSTRUCTION].numpy())

    def generate(self, seeds: np.ndarray) -> np.ndarray:
        """Seeds int64 [n] to images uint8 [n, 28, 28]."""
        answer = self._signatures[contract.GENERATE](seed=tf.constant(seeds, tf.int64))
        return to_bytes(answer[contract.IMAGES].numpy())


@dataclasses.dataclass(frozen=True)
class Material:
    """What the sections are made of.

    Attributes:
      summary: What ``summary.json`` holds; every figure shown is one of its.
      metadata: What the model says of itself.
      training: The Trainer's ``training.json``.
      model: The exported model.
      evaluation: Columns of the index's eval split.
      train: Columns of its train split.
      held_out: Columns of its held-out split, {} without one.
    """

    summary: dict[str, Any]
    metadata: dict[str, Any]
    training: dict[str, Any]
    model: ExportedModel
    evaluation: Columns
    train: Columns
    held_out: Columns

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
