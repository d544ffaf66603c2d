"""GRPO and PPO: advantages worked out by hand, rounds of learning, and rounds that were killed."""

import dataclasses
import json
import math
import shutil

import jax
import msgspec
import numpy as np
import pytest
from flax import nnx
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from report_runs import make_dialogue, write_dialogues
from safetensors.numpy import load_file, save_file
from tiny_run import SETTINGS, copy_of, run_stage
from tiny_training import lines, without_times

from emodistill.configs import GRPOConfig, PPOConfig, ReportConfig
from emodistill.domains import load_scenarios
from emodistill.errors import InputError
from emodistill.evaluation.checkpoint_looks import LOOKS, CheckpointLook
from emodistill.llm.usage import Usage
from emodistill.model import LoRAParam, add_lora, load_qwen2, save_adapter
from emodistill.offline.judge_items import NO_ANSWER
from emodistill.offline.rewards import FocalTurns, SweepData, group_advantages
from emodistill.offline.rounds import (
    ROUNDS,
    Round,
    Spent,
    counts,
    reached_limit,
    read_rounds,
    recorded_spent,
    total_spent,
)
from emodistill.offline.store import write_records
from emodistill.offline.workers import JobsResult
from emodistill.prompts import load_pack
from emodistill.records import DialogueUsage, Judgement
from emodistill.reports import report
from emodistill.reports.run_data import read_run
from emodistill.reports.spending import spent_curves
from emodistill.seeding import jax_key, stream
from emodistill.stages import on_policy as stage
from emodistill.train.adapter_training import OPT_STATE
from emodistill.train.critic import Critic, critic_advantages, generalized_advantages
from emodistill.train.on_policy import train_round
from emodistill.train.trainer import Trainer

TURNS = FocalTurns.from_trajectories(TRAJECTORIES, SCORES)
KINDS = {"grpo": GRPOConfig, "ppo": PPOConfig}


def rescored(scores):
    return dataclasses.replace(TURNS, scores=np.asarray(scores, float))


class TestGroups:
    def test_turns_are_compared_within_scenario_and_turn_index(self):
        advantages = group_advantages(TURNS, "turn-judge")
        groups = {}
        for row, key in enumerate(zip(TURNS.scenario_ids, TURNS.turn_index, strict=True)):
            groups.setdefault(key, []).append(row)
        assert len(groups) == 4 and all(len(rows) == 4 for rows in groups.values())
        for rows in groups.values():
            scores = TURNS.scores[rows]
            expected = (scores - scores.mean()) / scores.std()
            np.testing.assert_allclose(advantages[rows], expected, rtol=1e-5)
            assert abs(advantages[rows].sum()) < 1e-9

    def test_a_dialogues_own_reward_is_that_of_all_its_turns(self):
        dialogue_values = np.array([0.1, 0.4, 0.4, 0.9, 0.0, 0.0, 0.0, 0.0])
        turns = dataclasses.replace(TURNS, utilities=dialogue_values[TURNS.trajectory_index])
        advantages = group_advantages(turns, "utility")
        first = dialogue_values[:4]
        expected = [*(first - first.mean()) / first.std(), 0.0, 0.0, 0.0, 0.0]
        np.testing.assert_allclose(
            advantages, np.array(expected)[TURNS.trajectory_index], rtol=1e-5, atol=1e-9
        )

    def test_a_lone_turn_and_one_without_a_score_have_no_advantage(self):
        """A failed call of the judge is no score, and compares with nothing."""
        is_first = (TURNS.turn_index == 0) & (TURNS.scenario_ids == TURNS.scenario_ids[0])
        rows = np.flatnonzero(is_first)
        scores = TURNS.scores.copy()
        scores[rows[1:]] = math.nan
        advantages = group_advantages(rescored(scores), "turn-judge")
        assert np.isnan(advantages[rows]).all()
        assert np.isfinite(np.delete(advantages, rows)).all()


class TestCritic:
    def test_advantages_are_the_sum_of_the_discounted_errors(self):
        """Against the definition, Σ (γλ)^l δ_{t+l}, dialogue by dialogue."""
        rng = stream(0, "gae")
        rewards, values = rng.normal(size=7), rng.normal(size=7)
        rewards[4] = math.nan
        is_last = np.array([False, False, True, True, False, False, True])
        got = generalized_advantages(rewards, values, is_last, discount=0.9, gae_lambda=0.8)
        for dialogue in ([0, 1, 2], [3], [4, 5, 6]):
            deltas = [
                0.0
                if math.isnan(rewards[t])
                else rewards[t] + (0.0 if is_last[t] else 0.9 * values[t + 1]) - values[t]
                for t in dialogue
            ]
            for i, t in enumerate(dialogue):
                expected = sum((0.9 * 0.8) ** n * delta for n, delta in enumerate(deltas[i:]))
                assert got[t] == pytest.approx(expected, abs=1e-12)

    def test_without_bootstrapping_they_are_the_return_less_the_value(self):
        rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.5, 0.2])
        is_last = np.array([False, False, True])
        got = generalized_advantages(rewards, values, is_last, discount=1.0, gae_lambda=1.0)
        np.testing.assert_allclose(got, 1.0 - values)

    def test_a_critic_learns_which_states_are_worth_more_and_survives_the_disk(self, tmp_path):
        config = PPOConfig(signal="utility", critic_learning_rate=2e-2)  # as many steps as rounds
        worth = np.where(TURNS.turn_index == 0, 0.2, 0.8)
        turns = dataclasses.replace(TURNS, utilities=np.full(len(TURNS), 0.5))
        critic = Critic.initial(config)
        found = critic_advantages(config, critic, TRAJECTORIES, turns)
        assert found.advantages_N.mean() == pytest.approx(0.0, abs=1e-9)
        assert found.advantages_N.std() == pytest.approx(1.0)
        fitted, error = critic.fitted(found.observation_NS, worth, config)
        assert error > 0.05
        np.testing.assert_allclose(fitted.values(found.observation_NS), worth, atol=0.05)
        fitted.save(tmp_path / "critic.safetensors")
        loaded = Critic.load(tmp_path / "critic.safetensors")
        np.testing.assert_array_equal(
            loaded.values(found.observation_NS), fitted.values(found.observation_NS)
        )

    def test_a_turn_without_a_score_is_left_out_and_changes_no_other_reward(self):
        scores = TURNS.scores.copy()
        scores[3] = math.nan
        config = PPOConfig()
        found = critic_advantages(config, Critic.initial(config), TRAJECTORIES, rescored(scores))
        assert np.flatnonzero(np.isnan(found.advantages_N)).tolist() == [3]
        assert np.isfinite(found.target_N).all()
        assert np.nanmean(found.advantages_N) == pytest.approx(0.0, abs=1e-9)
        assert np.nanstd(found.advantages_N) == pytest.approx(1.0)
        unscored = rescored(np.full(len(TURNS), math.nan))
        found = critic_advantages(config, Critic.initial(config), TRAJECTORIES, unscored)
        assert np.isnan(found.advantages_N).all()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    short_pack(folder)
    return load_pack(folder)


@pytest.fixture(scope="module")
def sft_adapter(tmp_path_factory, tiny_checkpoint):
    """An adapter that might have been trained."""
    folder = tmp_path_factory.mktemp("sft") / "adapter"
    model = load_qwen2(tiny_checkpoint)
    add_lora(model, 4, 32.0, GRPOConfig().lora_targets, jax_key(0, "adapter"))
    rng = stream(0, "adapter")
    lora = nnx.state(model, LoRAParam)
    nnx.update(model, jax.tree.map(lambda x: x + rng.normal(0, 0.02, x.shape).astype("f"), lora))
    save_adapter(model, folder, str(tiny_checkpoint))
    return folder


@pytest.fixture(scope="module")
def learn(tiny_checkpoint, sft_adapter, pack):
    """Learns a round in a folder."""

    def learn(home, number, *, kind="ppo", scores=SCORES, **settings):
        config = KINDS[kind](
            **{"model": str(tiny_checkpoint), "lora_rank": 4, "batch_size": len(TURNS)}
            | {"learning_rate": 1e-2, "save_every": 1, "num_epochs": 3}  # one shape to compile
            | settings
        )
        before = home / str(number - 1) if number > 1 else None
        directory = home / str(number)
        learnt = train_round(
            config,
            SweepData(TRAJECTORIES, SCENARIOS, scores, pack),
            directory=directory,
            spoke=before / "adapter" if before else sft_adapter,
            reference=sft_adapter,
            temperature=0.7,
            before=before,
        )
        return directory, learnt

    return learn


@pytest.fixture(scope="module")
def two_rounds(learn, tmp_path_factory):
    """Two rounds of PPO, which no test changes."""
    home = tmp_path_factory.mktemp("rounds")
    for number in (1, 2):
        learn(home, number)
    return home


class TestRound:
    """Learning alone, on dialogues as they might have been played."""

    def test_the_first_step_has_ratio_one_and_no_clip(self, two_rounds):
        for number in (1, 2):
            first = lines(two_rounds / str(number))[0]
            assert first["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
            assert first["policy/clip_fraction"] == 0.0
            # In the first round the student is still the reference; in the second it has moved.
            assert (first["policy/kl_k3"] > 1e-5) == (number == 2)
        rows = lines(two_rounds / "2")
        rates = [row["optimizer/learning_rate"] for row in rows]
        np.testing.assert_allclose(rates, 1e-2, rtol=1e-6)  # no warm-up and no decay

    def test_equal_rewards_teach_nothing(self, learn, tmp_path):
        equal = dict.fromkeys(SCORES, 5)
        directory, learnt = learn(tmp_path, 1, kind="grpo", scores=equal)
        assert learnt.adapter.num_samples == len(TURNS)
        rows = lines(directory)
        assert {row["policy/surrogate"] for row in rows} == {0.0}
        assert rows[0]["optimizer/grad_norm"] < 1e-6  # the reference doesn't pull yet

    @pytest.mark.parametrize("kind", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
    def test_a_killed_round_ends_with_the_adapter_of_one_that_was_not(
        self, learn, kind, two_rounds, tmp_path, monkeypatch
    ):
        if kind != "ppo":
            two_rounds = tmp_path / "whole"
            for number in (1, 2):
                learn(two_rounds, number, kind=kind)
        whole, killed_home = two_rounds / "2", tmp_path / "killed"
        shutil.copytree(two_rounds / "1", killed_home / "1")

        class KilledError(Exception):
            pass

        def killed(module, name):
            def die(*args, **settings):
                raise KilledError

            with monkeypatch.context() as patch, pytest.raises(KilledError):
                patch.setattr(f"emodistill.train.{module}.{name}", die)
                learn(killed_home, 2, kind=kind)

        with monkeypatch.context() as patch, pytest.raises(KilledError):
            steps = iter((True, True, False))

            def dying(*args, **settings):
                if not next(steps):
                    raise KilledError
                return step(*args, **settings)

            step = Trainer.step
            patch.setattr(Trainer, "step", dying)
            learn(killed_home, 2, kind=kind)  # in the middle of the steps
        killed("adapter_training", "save_opt_state")
        killed("adapter_training", "save_adapter")
        killed_dir, _ = learn(killed_home, 2, kind=kind)
        names = ["adapter/adapter_model", OPT_STATE.removesuffix(".safetensors")]
        for name in [*names, *(["critic"] if kind == "ppo" else [])]:
            files = [folder / f"{name}.safetensors" for folder in (whole, killed_dir)]
            assert files[0].read_bytes() == files[1].read_bytes(), name
        assert without_times(lines(killed_dir)) == without_times(lines(whole))

    def test_the_optimiser_goes_on_where_the_round_before_ended(self, two_rounds):
        counts = [
            int(value)
            for number in (1, 2)
            for name, value in load_file(two_rounds / f"{number}" / OPT_STATE).items()
            if name.endswith("count")
        ]
        assert sorted(set(counts)) == [3, 6]

    def test_another_adapters_optimiser_is_refused(self, learn, two_rounds, tmp_path):
        directory = tmp_path / "1"
        shutil.copytree(two_rounds / "1", directory)
        state = load_file(directory / OPT_STATE)
        save_file(
            {name: value.reshape(-1)[:1].copy() for name, value in state.items()},
            directory / OPT_STATE,
        )
        with pytest.raises(InputError, match="of another optimiser or adapter"):
            learn(tmp_path, 2)
        (directory / OPT_STATE).write_bytes(b"torn")
        with pytest.raises(InputError, match="can't be read"):
            learn(tmp_path, 2)


def spent_rounds(number):
    facts = {
        **{"num_dialogues": 10, "num_failed": 0, "num_calls": 100, "call_tokens": 1000},
        **{"student_tokens": 5, "num_turns": 40, "num_unscored": 1, "num_samples": 39},
        **{"num_steps": 3, "play_s": 30.0, "judge_s": 20.0, "train_s": 10.0, "cost_usd": 0.5},
        **{"utility": {"a": 0.2, "b": 0.4}, "success": 0.5, "mean_score": 6.0, "metrics": {}},
    }
    return [Round(number=i + 1, **facts) for i in range(number)]


@pytest.mark.parametrize(
    ("flag", "value", "num_rounds"),
    [
        ("max_dialogues", 25, 2),
        ("max_calls", 250, 2),
        ("max_call_tokens", 3000, 3),
        ("max_minutes", 2.5, 2),
    ],
)
def test_no_round_begins_that_would_exceed_a_limit(flag, value, num_rounds):
    config = GRPOConfig(scenarios_per_round=2, group_size=5, **{flag: value})
    name = f"--{flag.replace('_', '-')}"
    allowed = [reached_limit(spent_rounds(done), 10, config) for done in range(5)]
    assert allowed == [None] * num_rounds + [name] * (5 - num_rounds)
    with pytest.raises(InputError, match="--max-dialogues 63 allows no round of 64 dialogues"):
        GRPOConfig(max_dialogues=63)
    assert total_spent(spent_rounds(2)) == Spent(20, 200, 2000, 120.0, 1.0)
    assert spent_rounds(1)[0].mean_utility == pytest.approx(0.3)


class KilledError(Exception):
    """Stands for a kill at the place where it is raised."""


@pytest.fixture(scope="module")
def played_run(tiny_run, tmp_path_factory):
    """A run with a sweep, a selector and an SFT adapter, without other trainings."""
    return copy_of(tiny_run, tmp_path_factory.mktemp("on-policy") / "run")


def config_of(run, kind=GRPOConfig, **settings):
    tiny = {"scenarios_per_round": 2, "group_size": 2, "max_turns": 4, "concurrency": 8}
    tiny |= {"num_rounds": 2, "max_tokens": 512, "batch_size": 4, "save_every": 1}
    return SETTINGS.config(kind, run=run, **tiny | settings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_killed_run_ends_with_the_files_of_one_that_was_not(
    played_run, tmp_path, monkeypatch, kind
):
    """Killed while it plays, before it judges, while it learns, and before the round is noted."""
    runs = [copy_of(played_run, tmp_path / name) for name in ("whole", "killed")]
    run_stage(config_of(runs[0], kind))

    def die(*args, **settings):
        raise KilledError

    def die_after_a_round(directory, number):
        if number:
            raise KilledError

    play, count = stage.play_all.__globals__["play"], []

    async def play_two(*args, **settings):
        count.append(1)
        if len(count) > 2:
            raise KilledError
        return await play(*args, **settings)

    for target, replacement in (
        ("emodistill.offline.sweep.play", play_two),
        ("emodistill.stages.on_policy.run_judging", die),
        ("emodistill.train.adapter_training.save_adapter", die),
        ("emodistill.stages.on_policy.write_records", die),
        ("emodistill.stages.on_policy._clear", die_after_a_round),
    ):
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr(target, replacement)
            run_stage(config_of(runs[1], kind))
    run_stage(config_of(runs[1], kind))
    cells = [run / f"crad/{kind.stage}/default" for run in runs]
    names = [*(f"rounds/000{n}/adapter" for n in (1, 2)), "adapter"]
    for name in names:
        files = [cell / name / "adapter_model.safetensors" for cell in cells]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    noted = []
    for cell in cells:
        rounds = read_rounds(cell / ROUNDS)
        assert [one.number for one in rounds] == [1, 2]
        still = {"play_s": 0.0, "judge_s": 0.0, "train_s": 0.0}
        noted.append([{**one.to_json(), **still} for one in rounds])
        assert not list(cell.glob("rounds/*/checkpoints"))
    assert noted[0] == noted[1]
    manifest = json.loads((cells[0] / "manifest.json").read_text())
    assert manifest["summary"]["num_dialogues"] == 8 and manifest["summary"]["num_calls"] > 8


@pytest.mark.slow
def test_grpo_learns_what_the_judge_rewards(played_run, tmp_path, monkeypatch):
    """Planted: short replies score high. Within a few rounds the student's get shorter."""

    async def short_is_good(config, trajectories, scenarios, *, path, **others):
        lines = [
            Judgement(
                trajectory_id=dialogue.trajectory_id,
                turn_index=turn.index,
                judge=config.judge,
                repeat=0,
                attempt=0,
                rubric_sha256="0",
                raw="",
                status="scored",
                score=max(1, 10 - len(turn.text.split()) // 3),
            )
            for dialogue in trajectories
            for turn in dialogue.focal_turns
        ]
        write_records(path, lines)
        return JobsResult(
            num_planned=len(lines),
            num_finished=len(lines),
            num_failed=0,
            num_new=len(lines),
            cost_usd=0.0,
            stopped=None,
            path=path,
            finished="",
            failed="",
            on_interrupt="",
            usage=Usage(),
        )

    run = copy_of(played_run, tmp_path / "run")
    monkeypatch.setattr(stage, "run_judging", short_is_good)
    settings = {"scenarios_per_round": 3, "group_size": 8, "num_rounds": 5, "kl_coef": 0.0}
    settings |= {"learning_rate": 2e-3, "batch_size": 16, "focal_temperature": 1.0}
    run_stage(config_of(run, **settings))
    scores = [one.mean_score for one in read_rounds(run / "crad/grpo/default" / ROUNDS)]
    assert scores[-1] > scores[0] + 0.5, scores


def test_the_figure_starts_where_the_sweep_has_ended(tmp_path):
    """A round plays what those before it have taught, so it stands at what they have cost."""
    run = tmp_path / "run"
    sweep = [make_dialogue(number=n, share=0.5, method="sweep", turns=4) for n in (1, 2, 3)]
    write_dialogues(run / "crad/sweep/trajectories.jsonl", sweep)
    for method, share in (("iql+sft", 0.3), ("iql+sft+grpo", 0.6)):
        played = [make_dialogue(number=n, share=share, method=method, turns=4) for n in (4, 5)]
        path = run / f"crad/eval/{method}@sim-counterparty/default.jsonl"
        write_dialogues(path, played)
    write_records(run / "crad/grpo/default" / ROUNDS, spent_rounds(3))
    config = ReportConfig(run=run, num_resamples=10, only="spending")
    start, curve = spent_curves(read_run(config))
    assert [point.spent.num_dialogues for point in curve.rounds] == [3, 13, 23]
    assert [point.utility for point in curve.rounds] == [pytest.approx(0.3)] * 3
    assert (start.name, start.held_out.spent.num_dialogues) == ("iql+sft", 3)
    assert curve.held_out.spent.num_dialogues == 33
    assert curve.held_out.utility > 0.5 > start.held_out.utility
    cell = "num_rounds=3-abcd"  # another training, evaluated by --cells grpo
    played = [make_dialogue(number=n, share=0.7, method="iql+sft+grpo", turns=4) for n in (4, 5)]
    focal = msgspec.structs.replace(played[0].focal, cells={"grpo": cell})
    played = [msgspec.structs.replace(one, focal=focal) for one in played]
    path = run / f"crad/eval/iql+sft+grpo@sim-counterparty/grpo_cell={cell}-1234.jsonl"
    write_dialogues(path, played)
    write_records(run / "crad/grpo" / cell / ROUNDS, spent_rounds(3))
    curves = {one.name: one for one in spent_curves(read_run(config))}
    assert curves[f"iql+sft+grpo ({cell})"].held_out.utility > curve.held_out.utility
    assert curves["iql+sft+grpo"].held_out.utility == curve.held_out.utility
    path.unlink()
    (run / "crad/grpo" / cell / ROUNDS).unlink()
    path = run / "crad/jpo/default" / LOOKS
    rows = [CheckpointLook(step=0, num_dialogues=4, utility=1, success=1, score=None, utilities={})]
    rows += [msgspec.structs.replace(rows[0], step=16, cost=counts(Spent(4, 40, 400)))]
    write_records(path, rows)
    played = [make_dialogue(number=n, share=0.4, method="iql+sft+jpo", turns=4) for n in (4, 5)]
    write_dialogues(run / "crad/eval/iql+sft+jpo@sim-counterparty/default.jsonl", played)
    _, refined, _ = spent_curves(read_run(config))
    assert refined.held_out.spent.num_dialogues == 3 + 4  # with the looks at its checkpoints
    text = report(config).read_text(encoding="utf-8")
    assert "dialogues, the sweep" in text and "calls, the sweep" in text
    (run / "crad/grpo/default" / ROUNDS).unlink()
    with pytest.raises(InputError, match=r"spending a train_grpo\.py"):
        report(config)


def judgement(raw, score):
    return Judgement(
        trajectory_id=TRAJECTORIES[0].trajectory_id,
        turn_index=0,
        judge="sim-judge",
        repeat=0,
        attempt=0,
        rubric_sha256="0",
        raw=raw,
        status="failed" if score is None else "scored",
        score=score,
    )


def test_what_dialogues_have_cost_is_read_off_their_records():
    """The student's own replies are no calls, and those of a served model are."""
    dialogue = msgspec.structs.replace(
        TRAJECTORIES[0],
        usage=DialogueUsage(calls=6, prompt_tokens=600, completion_tokens=60),
        turns=tuple(
            msgspec.structs.replace(turn, prompt_tokens=100, completion_tokens=10)
            for turn in TRAJECTORIES[0].turns
        ),
    )
    own = recorded_spent([dialogue], ())
    assert own == Spent(1, 4, 440, 0.0, 0.0)  # two of four turns are the student's
    focal = msgspec.structs.replace(dialogue.focal, provider="openai")
    assert recorded_spent([msgspec.structs.replace(dialogue, focal=focal)], ()).num_calls == 6
    judged = [judgement("SCORE: 7", 7), judgement("Well.", None), judgement(f"{NO_ANSWER}]", None)]
    assert recorded_spent([dialogue], judged).num_calls == 4 + 2  # one call has had no answer


def test_a_round_draws_its_scenarios_anew_and_refuses_too_few():
    scenarios = [msgspec.structs.replace(s, split="train") for s in load_scenarios("crad")[:9]]
    config = GRPOConfig(scenarios_per_round=4)
    drawn = [stage.round_scenarios(scenarios, config, number) for number in (1, 2, 3)]
    assert all(len({s.scenario_id for s in of_round}) == 4 for of_round in drawn)
    assert drawn[0] != drawn[1] and drawn[0] == stage.round_scenarios(scenarios, config, 1)
    held_out = [msgspec.structs.replace(s, split="test") for s in scenarios[:6]]
    with pytest.raises(InputError, match="there are 3 training scenarios to play"):
        stage.round_scenarios([*held_out, *scenarios[6:]], config, 1)
