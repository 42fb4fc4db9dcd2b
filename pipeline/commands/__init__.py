"""The commands, one module a group; ``pipeline.cli`` loads the one that is named."""
