"""Chats to token ids and back, so that text is never taken for control tokens.

The chat template is rendered once with placeholders for the messages' contents. What the
template itself says may become control tokens; contents are encoded by a tokenizer that knows
none. Between two control tokens the template's and the contents' text is encoded in one piece, so
that ordinary chats get the very ids of `tokenizer.apply_chat_template`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emodistill.errors import InputError
from emodistill.untrusted import MAX_BYTES, brief, read_bytes, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Private-use characters around a message's number stand for its content.
_PLACEHOLDER = "\ue000{}\ue001"
_PLACEHOLDER_PATTERN = re.compile("\ue000([0-9]+)\ue001")

Message = Mapping[str, str]


class _Parts(NamedTuple):
    """What is derived from a tokenizer once."""

    text: Any
    """Its tokenizers.Tokenizer without any added token."""
    control: re.Pattern[str]
    """Matches any added token, in a group, so that `split` keeps it."""
    ids: dict[str, int]
    """The id of each added token."""


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer in a model folder; local files only, no remote code.

    Raises:
      InputError: the folder or its tokenizer is missing or torn, the tokenizer has no fast form,
        or it has no chat template, or one by which prompt and reply are not the whole chat.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder / 'tokenizer.json'} is missing; a model folder holds it beside the weights."
        )
    # Before the first import: transformers would otherwise advise to install torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # takes a second, which --help must not

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # transformers and tokenizers raise nearly anything here
        raise InputError(f"{folder}: the tokenizer can't be read ({brief(error)}).") from None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{folder}: the tokenizer has no fast form (tokenizer.json).")
    if not tokenizer.chat_template:
        raise InputError(
            f"{folder}: the tokenizer has no chat template; use an instruction-tuned model."
        )
    try:
        _check_template(tokenizer)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return tokenizer


def _check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a template by which a prompt and a reply are not the whole chat.

    A student is trained on what it is asked to continue. Templates of thinking models put thoughts
    between the two, or leave them open.
    """
    prompt, reply = {"role": "user", "content": "Go on."}, "I can do 45 days."
    asked = _render(tokenizer, [prompt], add_generation_prompt=True)
    whole = _render(
        tokenizer,
        [prompt, {"role": "assistant", "content": reply}],
        add_generation_prompt=False,
    )
    if not whole.startswith(asked + reply):
        separate = asked + reply
        pairs = enumerate(zip(whole, separate, strict=False))
        first = next((i for i, (ours, theirs) in pairs if ours != theirs), len(whole))
        raise InputError(
            "a prompt and a reply are not what the chat template writes of both: it has "
            f"{shown(whole[first:])} where they have {shown(separate[first:])}. "
            "Templates of models that always think are like that; use one that doesn't."
        )


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a chat, contents as text throughout.

    Args:
      messages: `{"role": …, "content": …}` each; a content such as "<|im_end|>" stays text.
      add_generation_prompt: end with the opening of the assistant's turn.

    Raises:
      InputError: a message is malformed, or the template refuses the chat, or it changes or drops
        a content.
    """
    contents = [_content(message, i) for i, message in enumerate(messages)]
    pieces = _render_with_placeholders(tokenizer, messages, add_generation_prompt)
    is_whole = {int(piece) for piece in pieces[1::2]} == set(range(len(contents)))
    plain = _render(tokenizer, messages, add_generation_prompt)
    if _fill(pieces, contents) != plain:
        # Some templates (Llama's) trim contents; others rewrite them, and can't be followed.
        contents = [content.strip() for content in contents]
        is_whole = is_whole and _fill(pieces, contents) == plain
    if not is_whole:
        raise InputError(
            "the chat template rewrites or drops the content of a message; use a template "
            "that passes contents through."
        )
    parts = _tokenizer_parts(tokenizer)
    segments = [""]  # text and control tokens in turn
    for i, piece in enumerate(pieces):
        text, *more = [contents[int(piece)]] if i % 2 else parts.control.split(piece)
        segments[-1] += text
        segments += more
    ids = [
        [parts.ids[segment]] if i % 2 else _encode_text(parts, segment)
        for i, segment in enumerate(segments)
    ]
    return list(itertools.chain(*ids))


def encode_reply(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of an assistant's reply: its text, then the end-of-turn token.

    After `encode_chat(…)` they continue it exactly as the template would write the whole chat.
    """
    return [*_encode_text(_tokenizer_parts(tokenizer), text), end_of_turn_id(tokenizer)]


def decode_reply(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of generated `ids` up to the first stop token, other control tokens left out."""
    stops = set(stop_ids(tokenizer))
    control = set(_tokenizer_parts(tokenizer).ids.values())
    before_stop = itertools.takewhile(lambda token: token not in stops, ids)
    text_ids = [token for token in before_stop if token not in control]
    return str(tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))


def end_of_turn_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The control token with which the template closes an assistant's turn.

    Raises:
      InputError: the template closes it with none, and the tokenizer has no end-of-text token.
    """
    chat = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    parts = _tokenizer_parts(tokenizer)
    after_reply = _render_with_placeholders(tokenizer, chat, add_generation_prompt=False)[-1]
    match = parts.control.search(after_reply)
    if match is not None:
        return parts.ids[match.group()]
    end_of_text: Any = tokenizer.eos_token_id
    if end_of_text is None:
        raise InputError("the chat template never closes an assistant's turn; add an eos_token.")
    return end_of_text


def stop_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Tokens that end a generated reply: end of turn, end of text, padding."""
    special: list[Any] = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return tuple(sorted({end_of_turn_id(tokenizer), *special} - {None}))


def template_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of the chat template."""
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def stored_template_sha256(folder: Path) -> str | None:
    """`template_sha256` of the tokenizer in a model folder, by its files alone; None without one.

    Raises:
      InputError: a file that is no JSON or no text.
    """
    try:
        own_file = folder / "chat_template.jinja"  # goes before the configuration, as there
        if own_file.is_file():
            return hashlib.sha256(own_file.read_text(encoding="utf-8").encode()).hexdigest()
        config = folder / "tokenizer_config.json"
        # Not as other JSON from outside: lengths without a bound are written in 31 digits there.
        stored = json.loads(read_bytes(config, MAX_BYTES)) if config.is_file() else {}
        template = stored.get("chat_template")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}: the tokenizer can't be read ({brief(error)}).") from None
    if isinstance(template, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None


def _content(message: Message, index: int) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or not isinstance(message.get("role"), str):
        raise InputError(f"messages[{index}]={message!r} needs a role and a content, both text.")
    return content


def _render(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], add_generation_prompt: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,  # of models that can do both, such as Qwen3
            )
        )
    except Exception as error:  # jinja errors and whatever a template raises
        raise InputError(f"the chat template refuses these messages ({brief(error)}).") from None


def _render_with_placeholders(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], add_generation_prompt: bool
) -> list[str]:
    """Template text and numbers of contents in turn, beginning and ending with template text."""
    marked = [{**m, "content": _PLACEHOLDER.format(i)} for i, m in enumerate(messages)]
    return _PLACEHOLDER_PATTERN.split(_render(tokenizer, marked, add_generation_prompt))


def _fill(pieces: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(contents[int(p)] if i % 2 else p for i, p in enumerate(pieces))


@functools.lru_cache(maxsize=8)  # a process has one tokenizer; the bound is for tests
def _tokenizer_parts(tokenizer: PreTrainedTokenizerFast) -> _Parts:
    from tokenizers import Tokenizer  # kept off --help

    added = {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    # Special or not, no added token is for contents; truncation and padding belong to batches.
    spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    longest_first = sorted(added, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first) or r"(?!)"
    return _Parts(Tokenizer.from_str(json.dumps(spec)), re.compile(f"({pattern})"), added)


def _encode_text(parts: _Parts, text: str) -> list[int]:
    return parts.text.encode(text, add_special_tokens=False).ids if text else []
