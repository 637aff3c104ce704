"""From a command line to a finished run: what `train.py` needs beyond the library."""
