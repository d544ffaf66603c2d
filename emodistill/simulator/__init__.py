"""Simulated teacher, counterparty and judge behind an OpenAI-compatible endpoint."""
