"""Training: losses, the loop with its checkpoints, and the stages IQL, SFT and JPO.

Import from the modules: this package pulls in nothing, so that settings stay free of jax.
"""
