"""The parts of fxopt.train: options, learning rates, data, the loop, checkpoints, logs and processes."""
