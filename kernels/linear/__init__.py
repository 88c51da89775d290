"""Linear attention: no softmax, so that what was read is summed into a state of fixed size."""
