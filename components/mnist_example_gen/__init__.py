"""MnistExampleGen: IDX files to tf.Examples, on TFX's file-based ExampleGen."""
