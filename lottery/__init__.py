"""What the stages share: training under masks, pruning, tickets and their comparison."""

import os

# Files of the user's own (keras.json, matplotlibrc) would change arithmetic and pictures unseen.
os.environ |= {"KERAS_HOME": os.devnull, "KERAS_BACKEND": "tensorflow", "MATPLOTLIBRC": os.devnull}
