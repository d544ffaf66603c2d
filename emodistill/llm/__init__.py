"""Language models behind OpenAI-compatible APIs."""

from emodistill.llm.client import ChatClient, Completion, ExhaustedError, RefusedError
from emodistill.llm.providers import Price, Provider, get_provider, load_providers

__all__ = [
    "ChatClient",
    "Completion",
    "ExhaustedError",
    "Price",
    "Provider",
    "RefusedError",
    "get_provider",
    "load_providers",
]
