"""The preflight is silent on a good run, and finds each fault that is planted into one."""

import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from builders import judgement
from conftest import files_of
from flax import nnx
from judged_sweep import SCENARIOS, SCORES, TRAJECTORIES, short_pack
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_run import copy_of, run_stage

from emodistill import cli
from emodistill.batches import PackedBatches, packed_batches, row_packing
from emodistill.configs import JPOConfig, SFTConfig
from emodistill.domains import load_scenarios
from emodistill.model import LoRAParam, Qwen2, load_qwen2, save_qwen2
from emodistill.offline.run_files import read_sweep
from emodistill.offline.store import read_scenarios, write_records
from emodistill.prompts import load_pack
from emodistill.seeding import jax_key
from emodistill.train import loop, preparation
from emodistill.train.mask_checks import Chats, TrainedTokens, check_masks, expected_tokens
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.shown_samples import show_sample

ROOT = Path(__file__).resolve().parents[1]
CHECKS = [
    *("leaks", "masks", "end of turn", "template", "trainable", "adapter fits", "adapter"),
    *("step 0", "rows"),
]


def in_own_words(trajectory):
    """No two dialogues say the same, so that DPO's pairs have something to tell apart."""
    said = [
        msgspec.structs.replace(t, text=f"{trajectory.seed}: {t.text}") for t in trajectory.turns
    ]
    return msgspec.structs.replace(trajectory, turns=tuple(said))


@pytest.fixture(scope="module", autouse=True)
def one_shape():
    """All rows are of one length, so that trainings and checks find each other's programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "CPU_MICRO_TOKENS", 512)
        patch.setattr(row_packing, "NUM_CANDIDATES", 1)
        patch.setattr(packed_batches, "REPLY_MULTIPLE", 128)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_checkpoint):
    """A folder with a student, a prompt pack, and a run that has an SFT adapter; read only."""
    folder = tmp_path_factory.mktemp("preflight")
    shutil.copytree(tiny_checkpoint, folder / "student")
    (folder / "pack").mkdir()
    short_pack(folder / "pack")
    sweep = folder / "run/crad/sweep"
    held_out = [load_scenarios("crad")[i] for i in (2, 3)]
    held_out = [type(s).from_json(s.to_json() | {"split": "test"}, where="") for s in held_out]
    write_records(sweep / "scenarios.jsonl", [*SCENARIOS, *held_out])
    write_records(sweep / "trajectories.jsonl", map(in_own_words, TRAJECTORIES))
    scored = [judgement(name, index, score) for (name, index), score in SCORES.items()]
    write_records(folder / "run/crad/judge/sim-judge.jsonl", scored)
    run_stage(
        SFTConfig(
            run=folder / "run",
            model=str(folder / "student"),
            prompt_pack=folder / "pack",
            lora_rank=4,
            batch_size=4,
            learning_rate=1e-2,
            top_fraction=0.5,
        )
    )
    before = files_of(folder)
    yield folder
    assert files_of(folder) == before, "a preflight has written into the run"


@pytest.fixture
def copy(home, tmp_path):
    """A copy that a test may spoil."""
    return copy_of(home, tmp_path / "copy")


@pytest.fixture
def preflight(monkeypatch, capsys):
    """Run the script; its exit code, what it says, and the checks that have found a problem."""

    def run(folder, stage="jpo", *flags, student="student", is_measured=False):
        words = [
            *("preflight.py", stage, "--run", str(folder / "run")),
            *("--model", str(folder / student), "--prompt-pack", str(folder / "pack")),
            *("--lora-rank", "4", "--batch-size", "4", *flags),
            *(() if is_measured else ("--no-measure",)),
        ]
        monkeypatch.setattr(sys, "argv", words)
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts/preflight.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out + err, re.findall(r"^PROBLEM (.*?):", out, re.MULTILINE)

    return run


def test_a_good_run_passes_every_check(home, preflight):
    code, text, problems = preflight(home, "jpo", "--kappa", "0.5", is_measured=True)
    assert (code, problems) == (0, []), text
    assert re.findall(r"^ok +(.*?):", text, re.MULTILINE) == CHECKS
    assert "the same template in sft/default" in text
    assert "16 of 16 samples compared" in text and "2 training scenarios" in text
    assert re.search(r"8 steps: \d+ s \(.* s a step\), from 3 measured steps", text)
    assert "the paper's steps make about 21,040" in text and "of the rows is useful" in text
    # What is trained is in brackets, token by token, and ends with the end of the turn.
    shown = re.findall(r"assistant\n(\[.*\])$", text, re.MULTILINE)
    assert len(shown) >= 3
    assert all(line.endswith("[<|im_end|>]") for line in shown)
    assert all("Turn" in line.replace("][", "") for line in shown)
    assert "last '<|im_end|>'" in text and "(the longest)" in text
    (command,) = re.findall(r"^next: python scripts/train_jpo.py (.*)$", text, re.MULTILINE)
    assert "--kappa 0.5" in command and "measure" not in command and "lora-rank 4" in command


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "sft", "alol"])
def test_other_trainings_pass_too(home, preflight, stage):
    code, text, problems = preflight(home, stage)
    assert (code, problems) == (0, []), text
    assert f"next: python scripts/train_{stage}.py" in text
    assert "by arithmetic" in text
    assert ("B = 0" in text) == (stage == "sft")


def test_prompts_that_lost_their_oldest_turns_are_shown(home, preflight):
    code, text, problems = preflight(home, "jpo", "--max-tokens", "100", "--num-shown", "0")
    assert (code, problems) == (0, []), text
    assert "(its oldest turns left out)" in text and "lose their oldest turns" in text


def test_a_mask_that_is_shifted(home, preflight, monkeypatch):
    filled = PackedBatches._filled

    def shifted(self, *args):
        batch = filled(self, *args)
        return batch._replace(mask_SU=np.roll(batch.mask_SU, 1, axis=1))

    monkeypatch.setattr(PackedBatches, "_filled", shifted)
    code, text, problems = preflight(home)
    assert code == 3 and "masks" in problems
    assert "PROBLEM masks: in 16 of 16 samples" in text and "make no sequence" in text
    assert "next:" not in text


def test_a_boundary_between_prompt_and_reply_that_is_shifted(home, preflight, monkeypatch):
    monkeypatch.setattr(preparation, "build_examples", shifted_by(1))
    code, text, problems = preflight(home)
    assert (code, problems) == (3, ["masks"])
    assert "trained from +1 tokens beside its start" in text


def shifted_by(shift):
    """`build_examples` that takes so many tokens of the reply for the prompt's."""
    build = preparation.build_examples

    def shifted(*args, **settings):
        examples = build(*args, **settings)
        for example in examples:
            ids = np.concatenate([example.prompt_ids, example.response_ids])
            cut = len(example.prompt_ids) + shift
            object.__setattr__(example, "prompt_ids", ids[:cut])
            object.__setattr__(example, "response_ids", ids[cut:])
        return examples

    return shifted


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (
            (PackedBatches, "_filled"),
            lambda filled: (
                lambda *args: (batch := filled(*args))._replace(
                    mask_SU=batch.mask_SU & np.roll(batch.mask_SU, 1, axis=1)
                )
            ),
            "trained from +1 tokens beside its start to +0 beside its end",
        ),
        (
            (PackedBatches, "_filled"),
            lambda filled: (
                lambda *args: (batch := filled(*args))._replace(
                    mask_SU=batch.mask_SU & (np.arange(batch.mask_SU.shape[1]) != 2)
                )
            ),
            "left out within the reply: 1 tokens",
        ),
        (
            (preparation, "build_examples"),
            lambda _: shifted_by(-1),
            "trained from -1 tokens beside its start to +0 beside its end",
        ),
        (
            (preparation, "encode_chat"),
            lambda encode: lambda *args: [*encode(*args)[:3], *encode(*args)[4:]],
            "the chat template writes",
        ),
    ],
    ids=["late", "with a hole", "early", "another prompt"],
)
def test_what_is_wrong_with_a_mask_is_said(home, monkeypatch, place, wrong, message):
    monkeypatch.setattr(*place, wrong(getattr(*place)))
    config = SFTConfig(model=str(home / "student"), lora_rank=4, batch_size=4)
    data = read_sweep(
        home / "run/crad", load_pack(home / "pack"), home / "run/crad/judge/sim-judge.jsonl"
    )
    start = preparation.load_start(config, None)
    selected = preparation.select_turns(config, data, OBJECTIVES["sft"])
    batches = preparation.pack_samples(config, data, selected, start).batches
    chats = Chats(data, is_emotion_free=False)
    report = check_masks(batches, chats, start.tokenizer, wanted=(), checked=range(99))
    mask, end = report.findings
    assert mask.is_problem and message in mask.text
    assert not end.is_problem


def test_a_reply_without_its_end(home, preflight, monkeypatch):
    encode = preparation.encode_reply
    monkeypatch.setattr(preparation, "encode_reply", lambda *args: encode(*args)[:-1])
    code, text, problems = preflight(home)
    assert (code, problems) == (3, ["end of turn"])
    assert "not '<|im_end|>'" in text


def test_samples_that_see_each_other(home, preflight, monkeypatch):
    filled = PackedBatches._filled

    def open_rows(self, *args):
        batch = filled(self, *args)
        return batch._replace(ends_BT=np.full_like(batch.ends_BT, batch.ends_BT.shape[1]))

    monkeypatch.setattr(PackedBatches, "_filled", open_rows)
    code, text, problems = preflight(home, "jpo", "--packing", "sequence")
    assert code == 3 and "masks" in problems and "rows" in problems
    assert "make no sequence" in text


def test_another_chat_template_than_that_of_sft(copy, preflight):
    (path,) = (copy / "student").glob("chat_template*")
    text = path.read_text()
    assert "'<|im_end|>' + '\\n'" in text
    path.write_text(text.replace("'<|im_end|>' + '\\n'", "'<|im_end|>' + '\\n\\n'"))
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["template"])
    assert "sft/default was made with another chat template" in text


def test_another_prompt_pack_than_that_of_sft(copy, preflight):
    path = copy / "pack/focal.toml"
    path.write_text(path.read_text().replace("bargain over", "haggle about"))
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["template"])
    assert "another prompt pack" in text


def edit_scenarios(folder, change):
    path = folder / "run/crad/sweep/scenarios.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_test_scenario_that_is_trained_on(copy, preflight):
    edit_scenarios(copy, lambda lines: lines[0].update(split="test"))
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["leaks"])
    assert f"{SCENARIOS[0].scenario_id} is trained on, and held out for test" in text
    assert "unknown the rest: not checked, since training refuses" in text


def test_a_test_scenario_that_is_trained_on_under_another_id(copy, preflight):
    def give_away(lines):
        game = ("focal_target", "counterparty_anchor", "fields")
        lines[2].update({name: lines[1][name] for name in game})
        name, value = next((k, v) for k, v in lines[2]["fields"].items() if isinstance(v, str))
        lines[2]["fields"] = lines[2]["fields"] | {name: f" {value.upper()}"}

    edit_scenarios(copy, give_away)
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["leaks"])
    trained, held_out = read_scenarios(copy / "run/crad/sweep/scenarios.jsonl")[1:3]
    assert f"{trained.scenario_id} is trained on, and its facts" in text
    assert f"those of {held_out.scenario_id}" in text


def test_a_base_weight_that_is_trainable(home, preflight, monkeypatch):
    filters = nnx.Any(LoRAParam, nnx.PathContains("norm"))
    monkeypatch.setattr(loop, "LoRAParam", filters)
    code, text, problems = preflight(home)
    assert (code, problems) == (3, ["trainable"])
    assert "norm.weight" in text and "is no LoRA" in text


def test_an_adapter_on_other_projections_than_asked_for(home, preflight, monkeypatch):
    monkeypatch.setattr(loop, "LoRAParam", nnx.All(LoRAParam, nnx.PathContains("q_proj")))
    code, text, problems = preflight(home)
    assert (code, problems) == (3, ["trainable"])
    assert "k_proj has 0 trainable numbers instead of" in text


def test_an_adapter_of_another_base(copy, tiny_checkpoint, tiny_tokenizer_dir, preflight):
    form = load_qwen2(tiny_checkpoint, dtype=jnp.float32).config
    other = Qwen2(form, key=jax_key(1, "other"), dtype=jnp.float32)
    save_qwen2(other, copy / "other", extra_files=sorted(tiny_tokenizer_dir.iterdir()))
    code, text, problems = preflight(copy, student="other")
    assert (code, problems) == (3, ["adapter fits"])
    assert "was trained on another base model" in text


def edit_adapter(folder, change, **told):
    path = folder / "run/crad/sft/default/adapter/adapter_model.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=metadata | told)


def test_an_adapter_of_another_base_that_is_loaded_all_the_same(copy, preflight, monkeypatch):
    edit_adapter(copy, lambda _, tensor: tensor, base_fingerprint="f" * 64)
    monkeypatch.setattr("emodistill.model.adapters.base_fingerprint", lambda model: "f" * 64)
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["adapter fits"])
    assert "was trained on base ffffffffffff" in text


def test_an_adapter_that_is_zero(copy, preflight):
    edit_adapter(copy, lambda name, tensor: tensor * ("lora_B" not in name))
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["adapter"])
    assert "changes nothing" in text


def test_a_reference_that_is_not_what_training_starts_from(copy, preflight):
    args = ["--run", str(copy / "run"), "--model", str(copy / "student")]
    args += ["--prompt-pack", str(copy / "pack"), "--lora-rank", "4", "--batch-size", "4"]
    cli.main(JPOConfig, "", args=[*args, "--max-steps", "1"])
    code, text, problems = preflight(copy)
    assert (code, problems) == (0, []), text
    assert "from the stored reference" in text and "the same template in jpo/" in text
    (path,) = (copy / "run/crad/jpo/reference").iterdir()
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file({"ref_logp": 1.02 * load_file(path)["ref_logp"]}, path, metadata=metadata)
    code, text, problems = preflight(copy)
    assert (code, problems) == (3, ["step 0"])
    assert "instead of 1" in text and "instead of 0" in text


def test_what_is_lacking_is_code_2_and_nothing_is_made(home, preflight, tmp_path):
    for name in ("student", "pack"):
        (tmp_path / name).symlink_to(home / name)
    code, text, _ = preflight(tmp_path)
    assert code == 2
    assert "Run first:" in text and "scripts/train_sft.py" in text
    assert not (tmp_path / "run").exists()


def test_a_server_is_said_to_be_unchecked(home, preflight):
    code, text, problems = preflight(home, "jpo", "--url", "http://127.0.0.1:9/v1")
    assert (code, problems) == (0, []), text
    assert "unknown server: http://127.0.0.1:9/v1: a server's chat template can't be seen" in text


class TestShownTokens:
    def shown(self, tokenizer, text, num_trained, is_whole=True, **settings):
        ids = np.array(tokenizer.encode(text), np.int32)
        trained = tuple(range(len(ids) - num_trained, len(ids)))
        out = io.StringIO()
        console = Console(file=out, width=200, **settings)
        show_sample(console, TrainedTokens(ids, trained), tokenizer, is_whole=is_whole)
        return out.getvalue()

    def test_colour_where_there_is_one_and_brackets_elsewhere(self, tiny_tokenizer):
        coloured = self.shown(
            tiny_tokenizer, "a b c", 2, force_terminal=True, color_system="standard"
        )
        assert "\x1b[2ma" in coloured and "\x1b[1;32m b" in coloured and "\x1b[1;36m c" in coloured
        assert self.shown(tiny_tokenizer, "a b c", 2) == "a[ b][ c]\n"

    def test_dialogues_can_not_write_to_the_terminal(self, tiny_tokenizer):
        text = self.shown(tiny_tokenizer, "\x1b[31m [bold]x[/bold]", 3)
        assert "\x1b" not in text and "[bold" in text.replace("][", "")

    def test_long_prompts_are_cut_unless_asked_for(self, tiny_tokenizer):
        long = "1 2 3 4 5 6 7 8 9 " * 20
        assert "tokens …" in self.shown(tiny_tokenizer, long, 2, is_whole=False)
        assert "tokens …" not in self.shown(tiny_tokenizer, long, 2)


def test_text_that_spells_a_control_token_is_not_compared(tiny_tokenizer):
    messages = [{"role": "user", "content": "hi <|im_end|>"}]
    assert expected_tokens(tiny_tokenizer, messages, "45 days") is None
    found = expected_tokens(tiny_tokenizer, [{"role": "user", "content": "hi"}], "45 days")
    assert tiny_tokenizer.decode(found.ids[found.first :]) == "45 days<|im_end|>"
