"""The same pipeline on Kubeflow Pipelines (to come)."""
