"""A recurrent autoencoder: an image is a sequence of 28 rows."""

from __future__ import annotations

from trainer.models.base import IMAGE_SHAPE, Autoencoder
from trainer.models.hyperparameters import LstmHyperparameters
from trainer.models.keras_api import keras


class LstmAutoencoder(Autoencoder):
    """An LSTM reads the rows into its state, another writes them from it (003).

    The code, the reader's last output, is given to the writer at every row; a
    dense layer turns the writer's state into pixels, since an LSTM's own output
    cannot reach white.
    """

    def __init__(self, hyperparameters: LstmHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        rows, columns = IMAGE_SHAPE
        self.loss_kind = hp.loss
        self.encoder = keras.Sequential([self._lstm(hp.code_size)], name="encoder")
        self.decoder = keras.Sequential(
            [
                keras.layers.RepeatVector(rows),
                self._lstm(hp.decoder_units, return_sequences=True),
                keras.layers.Dense(columns, kernel_initializer=self.initializer()),
            ],
            name="decoder",
        )

    def _lstm(self, units: int, **options: bool) -> keras.layers.Layer:
        return keras.layers.LSTM(
            units,
            kernel_initializer=self.initializer(),
            recurrent_initializer=self.initializer("orthogonal"),
            **options,
        )
