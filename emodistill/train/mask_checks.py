"""Is the reply, its end included, what is trained, and all that precedes it what it is given?

Samples are read back from the arrays of the micro-batches, with nothing but the meaning of these
arrays (`batches.Batch`), and compared with the chat as transformers itself writes and encodes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emodistill.batches import Batch, PackedBatches
from emodistill.domains.scenario import Scenario
from emodistill.offline.rewards import SweepData
from emodistill.prompts import Message, focal_messages
from emodistill.records import Trajectory
from emodistill.train.findings import Finding, some_of
from emodistill.untrusted import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_CHECKED = 1024
"""Samples that are compared: a fault shows in many of them, and more would only take longer."""


class TrainedTokens(NamedTuple):
    """A sample as the model gets it."""

    ids: np.ndarray
    """All tokens up to the last trained one."""
    trained: tuple[int, ...]
    """The indices in `ids` of those that are trained on; none where the arrays make no sense."""


def read_back(batch: Batch, sample: int) -> TrainedTokens:
    """The sample with that index along S, from what its predictions see and what they predict."""
    flat = np.asarray(batch.logp_index_SU)[sample][np.asarray(batch.mask_SU)[sample]]
    num_scored = batch.parents_BM.shape[1]
    rows, ids, trained = flat // num_scored, np.zeros(0, np.int32), []
    for row, scored in zip(rows.tolist(), (flat % num_scored).tolist(), strict=True):
        parent = int(batch.parents_BM[row, scored])
        # Position k is seen from its own subtree: from k on, up to ends[k].
        is_seen = batch.ends_BT[row, : parent + 1] > parent
        context = batch.tokens_BT[row, : parent + 1][is_seen]
        depths = batch.positions_BT[row, : parent + 1][is_seen]
        is_next = not trained or np.array_equal(context[: len(ids)], ids)
        if not is_next or not np.array_equal(depths, np.arange(len(context))):
            return TrainedTokens(ids, ())
        trained.append(len(context))
        ids = np.append(context, batch.targets_BM[row, scored])
    return TrainedTokens(ids, tuple(trained))


class ExpectedTokens(NamedTuple):
    """A sample as transformers writes it."""

    ids: np.ndarray
    """The chat up to the token that ends the reply."""
    first: int
    """The index of the reply's first token."""


def expected_tokens(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], reply: str
) -> ExpectedTokens | None:
    """The whole chat by `apply_chat_template`, encoded in one piece.

    None where that can't be compared: a content spells a control token, which is text to us, or a
    token reaches from the prompt into the reply.
    """
    control: dict[Any, str] = {
        id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()
    }
    contents = [*(message["content"] for message in messages), reply]
    if any(token in content for content in contents for token in control.values()):
        return None
    given = [dict(message) for message in messages]
    render = tokenizer.apply_chat_template
    options: dict[str, Any] = {"tokenize": False, "enable_thinking": False}
    prompt = str(render(given, add_generation_prompt=True, **options))
    whole = str(render([*given, {"role": "assistant", "content": reply}], **options))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = np.array(encoded["input_ids"], np.int32), encoded["offset_mapping"]
    starts = [start for start, _ in spans]
    if not whole.startswith(prompt) or len(prompt) not in starts:
        return None
    first = starts.index(len(prompt))
    ends = [i for i in range(first, len(ids)) if int(ids[i]) in control]
    if ends:
        return ExpectedTokens(ids[: ends[0] + 1], first)
    end_of_text: Any = tokenizer.eos_token_id
    return ExpectedTokens(np.append(ids, np.int32(end_of_text)), first)


class Chats:
    """The chats of a sweep's focal turns, by the ids of samples."""

    def __init__(self, data: SweepData, *, is_emotion_free: bool) -> None:
        self._pack, self._is_emotion_free = data.pack, is_emotion_free
        self._trajectories: Mapping[str, Trajectory] = {
            trajectory.trajectory_id: trajectory for trajectory in data.trajectories
        }
        self._scenarios: Mapping[str, Scenario] = {
            scenario.scenario_id: scenario for scenario in data.scenarios
        }

    def chat(self, sample_id: str, num_dropped_turns: int) -> tuple[list[Message], str]:
        """The prompt's messages, without so many of the oldest turns, and the reply."""
        name, _, index = sample_id.rpartition("#")
        trajectory = self._trajectories[name]
        turn = trajectory.turns[int(index)]
        history = trajectory.turns[num_dropped_turns : int(index)]
        emotion = None if self._is_emotion_free else turn.emotion
        scenario = self._scenarios[trajectory.scenario_id]
        return focal_messages(self._pack, scenario, history, emotion), turn.text


class MaskReport(NamedTuple):
    """What the micro-batches hold."""

    findings: tuple[Finding, ...]
    read: Mapping[int, TrainedTokens]
    """The samples that were asked for, by their index."""
    num_attention_pairs: int
    """Of an epoch (see `batches.Work`)."""


def check_masks(
    batches: PackedBatches,
    chats: Chats,
    tokenizer: PreTrainedTokenizerFast,
    *,
    wanted: Collection[int],
    checked: Collection[int],
) -> MaskReport:
    """Compare samples as they stand in the rows with the chats that they were made from.

    Args:
      wanted: samples to hand back, by their index.
      checked: further samples to compare.
    """
    read: dict[int, TrainedTokens] = {}
    wrong: list[str] = []
    endless: list[str] = []
    num_compared, pairs = 0, batches.num_tokens
    for numbers, batch in batches.each_batch():
        pairs += int(batch.positions_BT.sum())
        for along, number in enumerate(numbers):
            if number not in wanted and number not in checked:
                continue
            example, found = batches.examples[number], read_back(batch, along)
            if number in wanted:
                read[number] = found
            messages, reply = chats.chat(example.sample_id, example.num_dropped_turns)
            expected = expected_tokens(tokenizer, messages, reply)
            if expected is None:
                continue
            num_compared += 1
            if difference := _difference(found, expected, tokenizer):
                wrong.append(f"{example.sample_id} ({difference})")
            if not found.trained or found.ids[found.trained[-1]] != expected.ids[-1]:
                last = _piece(tokenizer, found.ids[found.trained[-1:]])
                end = _piece(tokenizer, expected.ids[-1:])
                endless.append(f"{example.sample_id} (ends with {last}, not {end})")
    share = f"{num_compared:,} of {len(batches.examples):,} samples"
    return MaskReport(
        (_mask_finding(wrong, share, num_compared), _end_finding(endless, share)), read, pairs
    )


def _difference(
    found: TrainedTokens, expected: ExpectedTokens, tokenizer: PreTrainedTokenizerFast
) -> str | None:
    """How a sample differs from the chat, apart from a missing end, which has its own check."""
    if not found.trained:
        return "the positions of its tokens make no sequence"
    end = len(expected.ids)
    spans = [tuple(range(expected.first, stop)) for stop in (end, end - 1)]
    if found.trained not in spans:
        first, last = found.trained[0] - expected.first, found.trained[-1] - end + 1
        if first or last:
            return f"trained from {first:+d} tokens beside its start to {last:+d} beside its end"
        num_missing = end - expected.first - len(found.trained)
        return f"left out within the reply: {num_missing} tokens"
    stop = found.trained[-1] + 1
    if not np.array_equal(found.ids[:stop], expected.ids[:stop]):
        i = int(np.flatnonzero(found.ids[:stop] != expected.ids[:stop])[0])
        pieces = _piece(tokenizer, found.ids[i : i + 1]), _piece(tokenizer, expected.ids[i : i + 1])
        return f"token {i} is {pieces[0]}, the chat template writes {pieces[1]}"
    return None


def _piece(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    return shown(str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)))


def _mask_finding(wrong: Sequence[str], share: str, num_compared: int) -> Finding:
    if wrong:
        text = (
            f"in {len(wrong):,} of {num_compared:,} samples, what is trained is not the reply as "
            f"the chat template writes it: {some_of(wrong)}."
        )
        return Finding("masks", text, is_problem=True)
    if not num_compared:
        text = "no sample could be compared: each has text that spells a control token."
        return Finding("masks", text, is_problem=True)
    text = f"in {share} compared, the reply is trained and nothing else, after the prompt as played"
    return Finding("masks", f"{text}.")


def _end_finding(endless: Sequence[str], share: str) -> Finding:
    if endless:
        text = (
            f"{len(endless):,} samples don't end with the end-of-turn token, so that the student "
            f"would not learn to stop: {some_of(endless)}."
        )
        return Finding("end of turn", text, is_problem=True)
    return Finding("end of turn", f"the last trained token in {share} compared.")
