"""One module per DVC stage, of the same name."""
