"""The pack in the paper's layout: refused while it holds marks, then played, judged and trained on.

Our own words stand where the paper's go (`paper_layout`).
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
from builders import turns
from paper_layout import PAPER_PACK, PASTED, paste_texts
from tiny_run import EVALUATED, SETTINGS, run_stage

from emodistill import stages
from emodistill.configs import (
    EMBEDDED,
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError, StaleInputError
from emodistill.model import load_tokenizer, student_folder, template_sha256
from emodistill.negotiation import read_offer
from emodistill.offline.judging import parse_score
from emodistill.offline.store import read_judgements, read_trajectories
from emodistill.prompts import (
    counterparty_messages,
    dialogue_judge_messages,
    focal_messages,
    load_pack,
    turn_judge_messages,
)
from emodistill.runs import read_manifest
from emodistill.settings import Cell
from emodistill.simulator.reading import messages_text, read_brief, read_sections, read_tone
from emodistill.simulator.server import complete

SCENARIOS = load_scenarios("crad")[:20]
SAID = turns(
    20.0, 90.0, 30.0, texts=("I need 20 days.", "I need 90 days.", "My figure is 30 days.")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return paste_texts(tmp_path_factory.mktemp("packs") / "paper")


@pytest.fixture(scope="module")
def pack(folder):
    return load_pack(folder)


def test_the_pack_is_refused_until_all_is_pasted(tmp_path):
    with pytest.raises(InputError) as refused:
        load_pack(PAPER_PACK)
    lines = str(refused.value).splitlines()
    for name, texts in PASTED.items():
        assert sum(line.count("PASTE:") for line in lines if f"{name} [" in line) == len(texts)
    assert lines[3].count("PASTE: Appendix P.4, ") == 27 and len(lines) == 5
    assert f"{PAPER_PACK}/judge.toml [turn]: PASTE: Appendix P.3, the system message; " in lines[2]
    half = paste_texts(tmp_path / "half")
    path = half / "emotions.toml"
    path.write_text(path.read_text().replace("in the manner of joy", "PASTE: joy"))
    with pytest.raises(InputError, match=r"emotions\.toml \[fillings\]: PASTE: joy"):
        load_pack(half)
    with pytest.raises(InputError, match=r"emotions\.toml \[fillings\]: PASTE: joy"):
        run_stage(SweepConfig(run=tmp_path / "run", prompt_pack=half))
    assert not (tmp_path / "run").exists()


def test_the_layout_is_the_papers(pack):
    scenario = SCENARIOS[0]
    (focal,) = focal_messages(pack, scenario, SAID[:2], "anger")
    (other,) = counterparty_messages(pack, scenario, SAID[:1])
    in_order = {
        focal["content"]: ("RULES", "ROLE", "CASE", "SITUATION", "EMOTIONAL", "Your counter-offer"),
        other["content"]: ("SITUATION", "GOALS", "ROLE", "HISTORY", "EMOTIONAL", "Your position"),
    }
    for text, parts in in_order.items():
        places = [text.index(part) for part in parts]
        assert places == sorted(places)
    assert f"Target Timeline: {scenario.focal_target:g} days" in focal["content"]
    assert "SITUATION\nCreditor: I need 20 days.\nDebtor: I need 90 days.\n\n##" in focal["content"]
    assert "\nReply in the manner of anger. Let it show. Press on.\n\nYour" in focal["content"]
    assert f"Preferred Timeline: {scenario.counterparty_anchor:g} days" in other["content"]
    assert f"{scenario.focal_target:g} days" not in other["content"]
    system, user = turn_judge_messages(pack, scenario, SAID, 2)
    assert "{" not in user["content"] and system["content"].startswith("You rate")
    assert "TO SCORE\nMy figure is 30 days.\n" in user["content"]


def test_without_an_emotion_exactly_its_block_is_gone(pack):
    toned, free = (focal_messages(pack, SCENARIOS[0], SAID[:2], e) for e in ("joy", None))
    block = (
        "## EMOTIONAL STYLE\n(if there is one):\n"
        "Reply in the manner of joy. Let it show. Press on.\n\n"
    )
    assert free[0]["content"] == toned[0]["content"].replace(block, "")
    assert len(free[0]["content"]) == len(toned[0]["content"]) - len(block)


def test_the_simulated_models_read_one_message(pack):
    for scenario in SCENARIOS:
        focal, other = (
            [
                read_sections(*messages_text(prompt(pack, scenario, said, EMOTIONS[len(said)])))
                for said in ((), SAID[:1], SAID)
            ]
            for prompt in (focal_messages, counterparty_messages)
        )
        for sections, figure, role in (
            (focal, scenario.focal_target, "creditor"),
            (other, scenario.counterparty_anchor, "debtor"),
        ):
            # What tells a dialogue's scenario apart, and the counterparty's hidden type with it.
            assert len({one.scenario for one in sections}) == 1
            assert read_brief(sections[0].scenario)[:2] == ("crad", figure)
            assert read_brief(sections[0].scenario).role == role
            assert [read_tone(one) for one in sections] == [EMOTIONS[0], EMOTIONS[1], EMOTIONS[3]]
            assert "figure is 30" in sections[2].talks and "figure" not in sections[0].talks
    facts = read_brief(focal[0].scenario).facts
    assert {"outstanding_balance_usd", "recovery_stage"} <= facts.keys()


def test_a_single_message_without_headings_is_read_too():
    text = "You are the {0}.\n{1}: 30 days.\nTalks:\n{2}Sound angry.\nNow you."
    said = "Creditor: I need 30 days.\nDebtor: I need 90 days.\n"
    sections = read_sections("", text.format("creditor", "- Your target", said))
    assert sections.talks.startswith(said) and "need" not in sections.scenario
    assert read_tone(sections) == "anger"
    brief = read_brief(sections.scenario)
    assert (brief.own_figure, brief.role) == (30.0, "creditor")
    later = text.format("creditor", "- Your target", "").replace("angry", "sad")
    assert read_sections("", later).scenario == sections.scenario


def test_the_simulated_judge_scores_turns_and_dialogues(pack):
    ask = functools.partial(complete, "sim-judge", temperature=0.0)
    firm, weak, won, lost = [], [], [], []
    for number, scenario in enumerate(SCENARIOS):
        target, anchor = scenario.focal_target, scenario.counterparty_anchor
        texts = [f"I need {target:g} days.", f"I need {anchor:g} days."]
        for scores, value in ((firm, target + 2), (weak, anchor)):
            said = turns(None, None, None, texts=(*texts, f"I can go to {value:g} days."))
            messages = turn_judge_messages(pack, scenario, said, 2)
            scores.append(parse_score(ask(messages, seed=number)[0]))
        for scores, ending in ((won, ("accepted", target + 2)), (lost, ("breakdown", None))):
            messages = dialogue_judge_messages(pack, scenario, SAID[:2], *ending)
            scores.append(parse_score(ask(messages, seed=number)[0]))
    firm, weak, won, lost = (
        [score for score in scores if score] for scores in (firm, weak, won, lost)
    )
    assert min(map(len, (firm, weak, won, lost))) > 15
    mean = {name: sum(s) / len(s) for name, s in zip("fwal", (firm, weak, won, lost), strict=True)}
    assert mean["f"] > mean["w"] + 2 and mean["a"] > mean["l"] + 2


@pytest.mark.slow
def test_a_run_from_the_sweep_to_evaluation(tmp_path, monkeypatch):
    run, folder = tmp_path / "run", paste_texts(tmp_path / "pack")
    config = functools.partial(SETTINGS.config, run=run, prompt_pack=folder)
    # 512 tokens are too few for this prompt in the embedded student's vocabulary.
    adapter = {"max_tokens": 1024}
    method = EVALUATED[-1]
    evaluate = config(EvaluateConfig, method=method)
    run_stage(config(SweepConfig))
    run_stage(config(JudgeConfig))
    run_stage(SETTINGS.config(IQLConfig, run=run))
    for kind in (SFTConfig, JPOConfig):
        run_stage(config(kind, **adapter))
    run_stage(evaluate)

    home = run / "crad"
    swept = list(read_trajectories(home / "sweep/trajectories.jsonl"))
    focal, other = (
        [turn for one in swept for turn in one.turns if turn.speaker == speaker]
        for speaker in ("focal", "counterparty")
    )
    for said in (focal, other):
        offers = [turn.offer for turn in said if turn.offer is not None]
        assert len(offers) > len(said) / 2
        assert offers == [o for turn in said if (o := read_offer(turn.text, "crad")) is not None]
    assert {one.outcome for one in swept} >= {"accepted"}
    scores = [one.score for one in read_judgements(home / "judge/sim-judge.jsonl")]
    assert len({score for score in scores if score}) > 3

    pack = load_pack(folder)
    template = template_sha256(load_tokenizer(student_folder(EMBEDDED)))
    cell = stages.STAGES["evaluate"].job(Cell(evaluate))
    manifests = [read_manifest(home / f"{stage}/default") for stage in ("sft", "jpo")]
    manifests.append(read_manifest(cell.directory, cell.manifest))
    for manifest in manifests:
        assert manifest.status == "finished"
        assert manifest.inputs["prompt pack"] == pack.sha256
        assert manifest.inputs["chat template"] == template
    assert {one.prompt_pack_sha256 for one in (*swept, *read_trajectories(cell.output))} == {
        pack.sha256
    }

    free = dataclasses.replace(config(SFTConfig, **adapter), emotion_free=True)
    seen = []
    monkeypatch.setattr(
        "emodistill.batches.examples.focal_messages",
        lambda *given: seen.append((given, focal_messages(*given))) or seen[-1][1],
    )
    run_stage(free, base=config(SFTConfig, **adapter))
    assert seen
    for (used, scenario, history, emotion), messages in seen:
        assert emotion is None
        toned = focal_messages(used, scenario, history, "joy")[0]["content"]
        block = f"## EMOTIONAL STYLE\n(if there is one):\n{used.emotion_blocks['joy']}\n\n"
        assert messages[0]["content"] == toned.replace(block, "") != toned

    path = folder / "focal.toml"
    path.write_bytes(path.read_bytes().replace(b"say one sentence", b"say one Sentence"))
    for stage in (
        config(SweepConfig),
        config(SFTConfig, **adapter),
        config(JPOConfig, **adapter),
        config(EvaluateConfig, method=method),
    ):
        with pytest.raises(StaleInputError, match="prompt pack"):
            run_stage(stage)

    path.write_bytes(
        path.read_bytes().replace(b"\n{emotion_text}", b" {target_days} {emotion_text}")
    )
    base = config(SFTConfig, **adapter)
    for stage in (
        dataclasses.replace(base, emotion_free=True, lora_rank=2),
        config(EvaluateConfig, method="iql+sft+jpo-stripped"),
    ):
        # Before anything is learned or played, which would name no scenarios.
        with pytest.raises(InputError, match=r"^all \d+ scenarios: .*paragraph of \{emotion\}"):
            run_stage(stage, base if stage.stage == "sft" else None)
