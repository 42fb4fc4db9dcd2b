"""Convolutional autoencoders."""

from __future__ import annotations

from trainer.models.base import Autoencoder
from trainer.models.hyperparameters import ConvHyperparameters
from trainer.models.layers import conv_decoder, conv_encoder


class ConvAutoencoder(Autoencoder):
    """Convolutions with max-pooling, then up-sampling back (001, 003).

    ``conv`` and ``conv_mse`` are this class with other values.
    """

    def __init__(self, hyperparameters: ConvHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        self.loss_kind = hyperparameters.loss
        self.sigmoid_output = hyperparameters.output == "sigmoid"
        self.encoder = conv_encoder(self, hyperparameters.filters)
        self.decoder = conv_decoder(self, hyperparameters.filters)
