"""What will be trained on, checked before a long run; nothing is written.

The checks read what training itself will read (`preparation`, `loop.make_trainer`, the stored
reference) and compare it with what is worked out here in another way.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from emodistill.configs import AdapterConfig
from emodistill.errors import InputError
from emodistill.offline.rewards import SweepData
from emodistill.seeding import stream
from emodistill.train.expectations import (
    epoch_work,
    hours_text,
    left_out_text,
    seconds_per_position,
    steps_text,
    tokens_text,
)
from emodistill.train.findings import Finding
from emodistill.train.loop import make_trainer
from emodistill.train.mask_checks import MAX_CHECKED, Chats, MaskReport, check_masks
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.preparation import (
    PackedSamples,
    Start,
    load_start,
    pack_samples,
    select_turns,
)
from emodistill.train.reference import computed_logprobs, reference_file, stored_logprobs
from emodistill.train.shown_samples import chosen_samples, show_sample, title
from emodistill.train.start_checks import (
    check_alone,
    check_base,
    check_first_step,
    check_trainable,
    first_rows,
    take_first_step,
    with_logprobs,
)
from emodistill.train.template_checks import check_templates


class Look(NamedTuple):
    """How much a preflight shows and does (see `configs.preflight`)."""

    num_shown: int
    whole_prompts: bool
    measure: bool


def check_training(
    config: AdapterConfig,
    data: SweepData,
    look: Look,
    *,
    cell_dir: Path,
    sft_adapter: Path | None,
    weights: Collection[str],
    console: Console,
) -> list[Finding]:
    """Check what `train_adapter` would do with the same arguments, and show it on `console`.

    Args:
      weights: the hashes of the student's weights, as manifests have them.

    Raises:
      InputError: nothing to train on, or a model, turn or scenario that can't be used.
    """
    objective = OBJECTIVES[config.stage]
    selected = select_turns(config, data, objective)
    try:
        start = load_start(config, sft_adapter)
    except InputError as error:
        if sft_adapter is None:
            raise
        return [Finding("adapter fits", str(error), is_problem=True)]
    packed = pack_samples(config, data, selected, start)
    batches, model = packed.batches, start.model
    report = _show_masks(config, data, look, packed, start, console)

    epoch = epoch_work(batches, report.num_attention_pairs)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say()
    say(left_out_text(config, data, selected, packed))
    say(tokens_text(batches, epoch))
    say(steps_text(config, selected, batches))

    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    loud = objective._replace(loss=with_logprobs(objective.loss))
    parts = make_trainer(model, config, loud, num_steps)
    state = parts.trainer.init(parts.lora)
    trainable = check_trainable(state, config, model.config)
    ref_logp_NU, where = None, "this loss has no reference"
    if objective.needs_reference:
        directory = cell_dir.parent / "reference"
        file = reference_file(model, batches, directory=directory, made_from=packed.made_from)
        ref_logp_NU, where = stored_logprobs(file, batches), "from the stored reference"
        if ref_logp_NU is None:
            where = "from a reference computed for it; none is stored yet"
            rows = first_rows(batches)
            num_samples = sum(len(numbers) for numbers, _ in rows)
            ref_logp_NU = computed_logprobs(model, batches, rows, num_samples)
        batches.set_reference(ref_logp_NU)
    step = take_first_step(parts, state, first_rows(batches))
    alone = check_alone(parts, model, batches, step, is_new=config.reference == "base")
    measured_s = seconds_per_position(parts, state, batches) if look.measure else None
    say(hours_text(config, batches, epoch, model, measured_s=measured_s))
    say()
    template = check_templates(
        config,
        cell_dir.parents[1],
        weights=weights,
        template=packed.made_from["chat_template"],
        pack=data.pack.sha256,
        sft_dir=None if sft_adapter is None else sft_adapter.parent,
    )
    base = check_base(model, sft_adapter)
    return [
        *report.findings,
        template,
        trainable,
        *([] if base is None else [base]),
        alone.adapter,
        check_first_step(step, objective.shown_metric, ref_logp_NU, where),
        alone.rows,
    ]


def _show_masks(
    config: AdapterConfig,
    data: SweepData,
    look: Look,
    packed: PackedSamples,
    start: Start,
    console: Console,
) -> MaskReport:
    """Check masks, and print the samples that are to be shown."""
    examples, tokenizer = packed.batches.examples, start.tokenizer
    shown: Mapping[int, str] = chosen_samples(examples, seed=config.seed, num_shown=look.num_shown)
    order = stream(config.seed, "preflight", "masks").permutation(len(examples))
    report = check_masks(
        packed.batches,
        Chats(data, is_emotion_free=config.emotion_free),
        tokenizer,
        wanted=shown.keys(),
        checked={*order[:MAX_CHECKED].tolist()},
    )
    for i, why in shown.items():
        console.print()
        heading = title(report.read[i], examples[i], why, tokenizer)
        console.print(heading, style="bold", markup=False, highlight=False, soft_wrap=True)
        show_sample(console, report.read[i], tokenizer, is_whole=look.whole_prompts)
    return report
