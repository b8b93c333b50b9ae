"""Command lines beside the pipeline."""
