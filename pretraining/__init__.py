"""How a student like the one that ships is made; run by `scripts/pretrain_embedded.py`."""
