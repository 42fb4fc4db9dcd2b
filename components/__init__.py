"""What TFX does not have, one module or folder a component, and what several of them share."""
