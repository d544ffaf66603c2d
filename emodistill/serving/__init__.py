"""A trained student, or the whole negotiator, behind an OpenAI-compatible endpoint."""
