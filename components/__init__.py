"""What TFX does not have: MNIST ingestion, the validation gate, references, push."""
