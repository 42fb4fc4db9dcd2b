"""DriftMonitor: how a span differs from the window, and what follows."""
