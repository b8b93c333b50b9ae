"""What a run is, where it is computed, and where finished ones are kept."""
