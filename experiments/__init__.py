"""One module per paper. Each defines EXPERIMENT; `jattn list` shows them all."""
