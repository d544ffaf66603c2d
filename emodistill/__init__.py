"""Offline distillation of emotional negotiation skill into small language models."""

__version__ = "0.1.0"
