"""Methods against each other: both roles, paired dialogues, resuming, failures, and the matrix."""

import asyncio
import dataclasses
import json

import numpy as np
import pytest
from builders import dialogue

from emodistill import stages
from emodistill.configs import EvaluateConfig, SweepConfig, TournamentConfig
from emodistill.domains import load_scenarios
from emodistill.emotions import EMOTIONS
from emodistill.errors import EmodistillError, InputError
from emodistill.evaluation import methods
from emodistill.evaluation.players import PlayerPool, PlayerSpec
from emodistill.evaluation.tournament import cell_text, matrix_text
from emodistill.llm.endpoints import ModelEndpoint
from emodistill.llm.providers import load_providers
from emodistill.negotiation import DialogueState
from emodistill.offline.run_files import played_pairs
from emodistill.offline.store import read_trajectories
from emodistill.offline.sweep import plan_dialogues
from emodistill.prompts import load_pack
from emodistill.settings import Cell
from emodistill.stages import evaluation, round_robin
from emodistill.train import student

METHODS = ("vanilla-llm", "random")
PAIRS = [(focal, other) for focal in METHODS for other in METHODS]
SMALL = {"num_scenarios": 2, "num_seeds": 2, "max_turns": 6, "concurrency": 4}


# The matrix


DIALOGUES = [
    dialogue("1", 60.0),  # half of the way from 90 to 30
    dialogue("2", 20.0, scenario_id="debt_002"),  # past the target
    dialogue("3", None),
    dialogue("4", None, outcome="ongoing"),
]


def test_a_cell_by_hand():
    deviation = 100 * np.std([0.5, 1, 0, 0])  # the population's, not n - 1
    assert cell_text(DIALOGUES) == f"50.0 / 37.5 ± {deviation:.1f}" == "50.0 / 37.5 ± 41.5"
    assert cell_text([dialogue("1", 75.0)]) == "100.0 / 25.0 ± 0.0"
    assert cell_text([dialogue("1", None)]) == "0.0 / 0.0 ± 0.0"
    assert cell_text([]) == "-"


def test_the_matrix_as_text():
    cells = {("a", "b"): "50.0 / 37.5 ± 41.5", ("b", "a"): "100.0 / 25.0 ± 0.0"}
    assert matrix_text(cells, ["a", "b"]).splitlines() == [
        "focal \\ counterparty  a                   b",
        "a                     -                   50.0 / 37.5 ± 41.5",
        "b                     100.0 / 25.0 ± 0.0  -",
    ]


# Played through the simulator


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tournament, and the evaluation of one of its methods."""
    run = tmp_path_factory.mktemp("runs") / "tournament"
    stages.run(Cell(SweepConfig(run=run, num_scenarios=1, num_seeds=1)))
    stages.run(Cell(EvaluateConfig(run=run, method="random", **SMALL)))
    stages.tournament(TournamentConfig(run=run, methods=METHODS, **SMALL))
    return run


def played(run, pair):
    return read_trajectories(run / "crad/tournament" / f"{'@'.join(pair)}.jsonl")


def test_every_pair_plays_the_same_dialogues(run):
    ids = {pair: sorted(t.trajectory_id for t in played(run, pair)) for pair in PAIRS}
    assert len(ids[PAIRS[0]]) == 4 and len({tuple(names) for names in ids.values()}) == 1
    assert list(played_pairs(run / "crad")) == sorted(PAIRS)
    assert {t.split for t in played(run, PAIRS[0])} == {"test"}


def test_records_say_who_played_which_role_and_what_was_chosen(run):
    for pair in PAIRS:
        for trajectory in played(run, pair):
            assert (trajectory.focal.method, trajectory.counterparty.method) == pair
            for turns, method in (
                (trajectory.focal_turns, pair[0]),
                (trajectory.turns[1::2], pair[1]),
            ):
                chosen = [turn.emotion for turn in turns]
                assert (set(chosen) == {"neutral"}) == (method == "vanilla-llm"), pair
    both = played(run, ("random", "random"))
    assert any(
        [turn.emotion for turn in t.focal_turns] != [turn.emotion for turn in t.turns[1::2]]
        for t in both
    )


def test_against_the_vanilla_model_a_method_plays_as_in_its_evaluation(run):
    evaluated = read_trajectories(run / "crad/eval/random@sim-counterparty/default.jsonl")

    def said(trajectories):
        return {
            t.trajectory_id: [(turn.text, turn.offer) for turn in t.turns] for t in trajectories
        }

    assert said(played(run, ("random", "vanilla-llm"))) == said(evaluated)


def no_client(*_):
    raise AssertionError("nothing is left to call for")


def test_a_finished_tournament_makes_no_call(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "open_clients", no_client)
    stages.tournament(TournamentConfig(run=run, methods=METHODS, **SMALL))
    stages.tournament(TournamentConfig(run=run, methods=METHODS, **(SMALL | {"num_seeds": 1})))
    shown = capsys.readouterr().out
    assert shown.count("finished before") == 8
    assert "focal \\ counterparty" in shown


def test_what_is_missing_is_played_and_nothing_else(run, tmp_path, capsys):
    copy = copy_of(run, tmp_path)
    path = copy / "crad/tournament/random@vanilla-llm.jsonl"
    lines = sorted(path.read_text().splitlines())
    path.write_text("\n".join(lines[:3]) + "\n")
    manifest = path.with_name("random@vanilla-llm.manifest.json")
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    other = copy / "crad/tournament/random@random.jsonl"
    before = other.stat().st_mtime_ns
    stages.tournament(TournamentConfig(run=copy, methods=METHODS, **SMALL))
    assert capsys.readouterr().out.count("finished before") == 3
    again = {without_times(line) for line in path.read_text().splitlines()}
    assert again == {without_times(line) for line in lines}
    assert other.stat().st_mtime_ns == before


def without_times(line):
    record = json.loads(line)
    for turn in record["turns"]:
        del turn["latency_s"]
    return json.dumps(record)


def copy_of(run, folder):
    for source in run.rglob("*"):
        if source.is_file() and not source.name.startswith("."):
            target = folder / source.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


def test_a_pair_that_fails_leaves_the_others_alone(run, tmp_path, capsys):
    copy = copy_of(run, tmp_path)
    stale = copy / "crad/tournament/random@random.manifest.json"
    stale.write_text(stale.read_text().replace('"max_turns": 6', '"max_turns": 8'))
    (copy / "crad/tournament/vanilla-llm@random.jsonl").unlink()
    with pytest.raises(EmodistillError, match=r"1 of 4 pairs failed.*: random@random"):
        stages.tournament(TournamentConfig(run=copy, methods=METHODS, **SMALL))
    shown = capsys.readouterr().out
    assert "tournament random@random: failed:" in shown and "max_turns=8, now max_turns=6" in shown
    assert "tournament vanilla-llm@random: " in shown and "4 of 4 dialogues finished" in shown
    assert len(played(copy, ("vanilla-llm", "random"))) == 4


def test_an_adapter_that_can_not_be_read_fails_its_pairs_alone(run, tmp_path, capsys):
    copy = copy_of(run, tmp_path)
    folder = copy / "crad/sft/mine/adapter"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("torn")
    for name in ("selector.json", "selector.safetensors"):
        (copy / "crad/iql/mine").mkdir(parents=True, exist_ok=True)
        (copy / "crad/iql/mine" / name).write_text("torn")
    methods = ("vanilla-llm", "iql+sft")
    cells = {"sft": "mine", "iql": "mine"}
    config = TournamentConfig(run=copy, methods=methods, cells=cells, **SMALL)
    with pytest.raises(EmodistillError, match="3 of 4 pairs failed"):
        stages.tournament(config)
    assert "vanilla-llm@vanilla-llm: finished before" in capsys.readouterr().out


# Who plays


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("vanilla-llm", "iql+magic"), "iql\\+magic is not known; use one of"),
        (("vanilla-llm", "oracle"), "oracle: it knows who plays the counterparty"),
    ],
)
def test_who_can_not_play_is_refused_before_anything_is_made(tmp_path, methods, message):
    with pytest.raises(InputError, match=message):
        stages.tournament(TournamentConfig(run=tmp_path / "r", methods=methods))
    assert not (tmp_path / "r").exists()


def test_a_method_is_named_once():
    with pytest.raises(InputError, match="methods names iql twice"):
        TournamentConfig(methods=("iql", "iql"))
    with pytest.raises(InputError, match="methods is empty"):
        TournamentConfig(methods=())


def test_with_a_provider_named_nothing_is_made_unasked(tmp_path):
    config = TournamentConfig(run=tmp_path / "r", base_url="http://127.0.0.1:9/v1", focal="m")
    config = dataclasses.replace(config, methods=("iql",))
    with pytest.raises(
        InputError, match=r"(?s)lacks sweep, iql\. Run first:.*scripts/sweep\.py --run"
    ):
        stages.tournament(config)
    assert not (tmp_path / "r").exists()


def test_a_pair_has_all_settings_of_the_tournament():
    config = TournamentConfig(
        num_seeds=3, greedy=True, methods=("random", "iql"), cells={"iql": "mine"}
    )
    pair = config.pair("random", "iql")
    assert (pair.method, pair.opponent) == ("random", "iql")
    assert (pair.num_seeds, pair.greedy, pair.cell("iql")) == (3, True, "mine")


def test_a_language_model_is_the_same_in_both_roles_unless_it_is_told_otherwise():
    def models(*pair, **settings):
        found = evaluation.writing_models(TournamentConfig(**settings).pair(*pair))
        return tuple(endpoint and endpoint.name for endpoint in found)

    served = {"base_url": "http://127.0.0.1:9/v1", "focal": "m"}
    assert models(*METHODS, **served) == ("m", "m")
    assert models(*METHODS, **served, counterparty="c") == ("m", "c")
    assert models(*METHODS) == ("sim-teacher", "sim-counterparty")
    assert models(*METHODS, counterparty="sim-teacher") == ("sim-teacher", "sim-teacher")
    students = "vanilla-slm", "vanilla-slm"
    assert models(*students, base_url="http://127.0.0.1:9/v1") == (None, None)


def test_the_ceiling_is_the_whole_tournaments(run, tmp_path, monkeypatch):
    copy = copy_of(run, tmp_path)
    for manifest in (copy / "crad/tournament").glob("*.manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"cost_usd": 1.5}))
    ceilings = []

    def spied(cell, work):
        ceilings.append(cell.config.max_cost_usd)
        return stages.run(cell, work)

    monkeypatch.setattr(round_robin, "run", spied)
    stages.tournament(TournamentConfig(run=copy, methods=METHODS, max_cost_usd=5.0, **SMALL))
    stages.tournament(TournamentConfig(run=copy, methods=METHODS, **SMALL))
    assert ceilings == [5.0, 3.5, 2.0, 0.5, *[None] * 4]


def nobody(endpoint):
    """The client of an endpoint that is never called."""


def test_the_players_of_a_dialogue_draw_differently(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "free", methods.Method(writer="llm", selector="none"))
    (planned,) = plan_dialogues(load_scenarios("crad")[:1], num_seeds=1)
    state = DialogueState(focal_target=1.0, counterparty_anchor=2.0, max_turns=30)

    def chosen(method, role):
        pool = PlayerPool(EvaluateConfig(), client_of=nobody, pack=load_pack())
        served = ModelEndpoint(load_providers()["custom"], "m", "m")
        spec = PlayerSpec(method=method, language_model=served)
        player = asyncio.run(pool.player(spec, role, opponent=PlayerSpec()))
        choose = player.choose_for(planned)
        return [choose(state) for _ in range(8)]

    focal, other = (chosen("random", role) for role in ("focal", "counterparty"))
    assert focal != other and set(focal + other) <= set(EMOTIONS)
    assert focal == chosen("random", "focal")
    assert chosen("vanilla-llm", "focal") == ["neutral"] * 8
    assert chosen("free", "counterparty") == [None] * 8


def test_students_share_one_base(monkeypatch):
    loaded = []

    def load(*arguments, **settings):
        loaded.append(real(*arguments, **settings))
        return loaded[-1]

    real = student.load_student
    monkeypatch.setattr(student, "load_student", load)

    async def main():
        async with PlayerPool(EvaluateConfig(), client_of=nobody, pack=load_pack()) as pool:

            async def writer(temperature, role):
                spec = PlayerSpec(method="vanilla-slm", temperature=temperature)
                return (await pool.player(spec, role, opponent=spec)).writer

            one, same = await writer(0.4, "focal"), await writer(0.4, "counterparty")
            warmer = await writer(0.7, "focal")
            return one == same, one == warmer, len(pool._worker._engines)

    assert asyncio.run(main()) == (True, False, 1)
    assert len(loaded) == 1
