"""MnistExampleGen: the component."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import any_pb2, struct_pb2
from tfx.components.example_gen import component as example_gen
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2, range_config_pb2

from components import features
from components.mnist_example_gen import executor, idx


class MnistExampleGen(example_gen.FileBasedExampleGen):
    """Ingests IDX files as tf.Examples with ``image`` and, where known, ``label``.

    The folder holds ``train-images-idx3-ubyte``, ``t10k-images-idx3-ubyte`` and
    the two files of labels, plain or gzip-compressed. TFX's driver resolves
    ``{SPAN}`` and ``{VERSION}`` in ``pattern``.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.IdxExecutor)

    def __init__(
        self,
        input_base: str,
        pattern: str = "",
        keep_labels: Sequence[int] | None = None,
        range_config: range_config_pb2.RangeConfig | None = None,
        splits: Sequence[str] = (features.TRAIN_SPLIT, features.EVAL_SPLIT),
    ):
        """Makes the component.

        Args:
          input_base: Folder of the files, or of the spans.
          pattern: Folder of a span below ``input_base``, such as ``span-{SPAN}``.
          keep_labels: Digits to keep; None keeps all. The others of the eval
            files become the split ``held_out``.
          range_config: Which spans are considered; the latest when None.
          splits: Which of the two the folder holds.
        """
        inputs = [
            example_gen_pb2.Input.Split(
                name=name, pattern=(f"{pattern}/" if pattern else "") + f"{prefix}-*"
            )
            for name, prefix in (
                (features.TRAIN_SPLIT, idx.SPLIT_PREFIXES["train"]),
                (features.EVAL_SPLIT, idx.SPLIT_PREFIXES["eval"]),
            )
            if name in splits
        ]
        custom_config = None
        if keep_labels is not None:
            values = struct_pb2.Struct()
            values[executor.KEEP_LABELS] = sorted(keep_labels)
            packed = any_pb2.Any()
            packed.Pack(values)
            custom_config = example_gen_pb2.CustomConfig(custom_config=packed)
        super().__init__(
            input_base=input_base,
            input_config=example_gen_pb2.Input(splits=inputs),
            # What goes in comes out: TFX would split an only input by hash.
            output_config=example_gen_pb2.Output(),
            custom_config=custom_config,
            range_config=range_config,
        )
