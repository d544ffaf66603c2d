"""Speed and size against the libraries that people would use instead (`scripts/bench.py`)."""
