"""Speed and size beside other libraries; run by `scripts/bench.py`, results in `results/`."""
