"""Where data comes from, its formats, the split into training, validation and test set."""
