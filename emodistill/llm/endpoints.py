"""Which language model at which server: `model`, `provider:model` or `URL#model`."""

from __future__ import annotations

from typing import NamedTuple

from emodistill.configs import SIMULATED
from emodistill.errors import InputError
from emodistill.llm.providers import CUSTOM, Provider, get_provider, load_providers


class ModelEndpoint(NamedTuple):
    """A language model at its server."""

    provider: Provider
    model: str
    name: str
    """As manifests and folders have it: the model alone where its server is the usual one."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for endpoints that are the same."""
        return self.provider.name, self.provider.base_url, self.model

    @property
    def text(self) -> str:
        """Server and model, for people."""
        return f"{self.model} at {self.provider.label}"


def read_endpoint(text: str, usual: Provider | None, *, flag: str) -> ModelEndpoint:
    """The endpoint that a setting names.

    A colon ends a provider's name only where that is known, since names of models hold colons too.

    Args:
      usual: the server of a model that is named without one.
      flag: which setting it is, for the message.

    Raises:
      InputError: a model without a server, a URL without a model, or no usable URL.
    """
    if text.startswith(("http://", "https://")):
        url, _, model = text.partition("#")
        provider = get_provider(CUSTOM, base_url=url, flag=flag)  # no message shows credentials
        if not model:
            raise InputError(f"{flag} {provider.base_url} names no model; write URL#MODEL.")
        return ModelEndpoint(provider, model, f"{provider.base_url}#{model}")
    prefix, colon, model = text.partition(":")
    provider = load_providers().get(prefix) if colon and model else None
    if provider is not None:
        if usual is not None and provider.name == usual.name:
            return ModelEndpoint(usual, model, model)
        if provider.name == CUSTOM and not provider.base_url:
            raise InputError(
                f"{flag} {text}: provider {CUSTOM!r} has no address of its own; write URL#{model}."
            )
        if not provider.base_url:  # the simulator, whose models are known by their names
            return ModelEndpoint(provider, model, model)
        return ModelEndpoint(provider, model, text)
    if usual is None:
        raise InputError(
            f"{flag} {text} needs a --provider or --base-url that serves it, or its server in the "
            f"name (PROVIDER:{text}, URL#{text}); without one the simulator answers, and it serves "
            f"{', '.join(SIMULATED)} only."
        )
    return ModelEndpoint(usual, text, text)
