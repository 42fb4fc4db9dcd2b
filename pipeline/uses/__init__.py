"""What a trained model is good for: look at it, compare it, use it."""
