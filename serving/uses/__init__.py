"""What the code is good for: search, compression, inference over many images."""
