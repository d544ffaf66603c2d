"""Language models behind OpenAI-compatible APIs."""

from emodistill.llm.client import ChatClient, ExhaustedError, RefusedError, ScoredCompletion
from emodistill.llm.prices import Price
from emodistill.llm.providers import Provider, get_provider, load_providers
from emodistill.llm.usage import Completion

__all__ = [
    "ChatClient",
    "Completion",
    "ExhaustedError",
    "Price",
    "Provider",
    "RefusedError",
    "ScoredCompletion",
    "get_provider",
    "load_providers",
]
