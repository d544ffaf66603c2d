"""How the student that ships with emodistill was made; run by `scripts/pretrain_embedded.py`."""
