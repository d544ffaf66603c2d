"""From files and flags to a configuration, and from an error to one line and an exit code."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest
import yaml

from benchmarks.configs import BENCHMARKS
from emodistill import cli
from emodistill.configs import (
    CONFIGS,
    EMBEDDED,
    PREFLIGHTS,
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    PlanConfig,
    SFTConfig,
    SimulatorConfig,
    SweepConfig,
)
from emodistill.configs.studies import CounterpartyStudy
from emodistill.errors import ApiError, DivergenceError, InputError, StaleInputError
from emodistill.settings import Cell, Settings, cell_name, write_settings
from pretraining.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def parsed(stage: str, *args: str, **keys):
    return cli.parse(CONFIGS[stage], "A stage.", args, **keys).config


# Files and flags


@pytest.mark.parametrize("stage", CONFIGS)
def test_without_arguments_the_defaults(stage):
    assert parsed(stage) == CONFIGS[stage]()


def test_the_file_is_the_base_and_flags_override_it(tmp_path):
    file = write(tmp_path, "domain: hospital\njpo: {kappa: 0.5, clip: 0.3}\nsft: {top_fraction: 1}")
    jpo = parsed("jpo", "--kappa", "0.25", "--config", file)
    assert (jpo.domain, jpo.kappa, jpo.clip) == ("hospital", 0.25, 0.3)
    assert jpo.kl_coef == JPOConfig().kl_coef
    assert parsed("jpo", f"--config={file}", "--domain", "crad").domain == "crad"
    assert parsed("sft", "--config", file).top_fraction == 1.0
    assert parsed("iql", "--config", file) == IQLConfig(domain="hospital")


def test_a_section_goes_before_what_all_stages_share(tmp_path):
    file = write(tmp_path, "seed: 3\nsweep: {seed: 5}\njudge:\n")
    assert parsed("sweep", "--config", file).seed == 5
    assert parsed("judge", "--config", file).seed == 3


def test_where_no_file_is_named_a_script_may_start_from_a_preset(tmp_path):
    file = write(tmp_path, "sweep: {num_seeds: 9}")
    assert parsed("sweep", preset="fast").num_seeds == 3
    assert parsed("sweep", "--config", file, preset="fast").num_seeds == 9
    assert parsed("sweep", "--num-seeds", "4", preset="fast").num_seeds == 4


def test_a_cell_is_named_after_what_the_flags_changed(tmp_path):
    file = write(tmp_path, "jpo: {clip: 0.3}")
    cell = cli.parse(JPOConfig, "JPO.", ["--config", file, "--kappa", "0.5"])
    assert cell.base == JPOConfig(clip=0.3) and cell.config == JPOConfig(clip=0.3, kappa=0.5)
    assert cell.name == cell_name({"kappa": 0.5}) and cell.name.startswith("kappa=0.5-")


def test_cells_are_named_after_what_differs():
    def name(**changes):
        return Cell(JPOConfig(**changes), JPOConfig()).name

    assert name() == name(run=Path("elsewhere"), keep=9) == "default"
    assert name(kappa=0.5).startswith("kappa=0.5-") and name(kappa=0.5) != name(kappa=0.25)
    assert name(kappa=0.5, clip=0.1).startswith("clip=0.1_kappa=0.5-")
    assert cell_name({"b": 1, "a": 2}) == cell_name({"a": 2, "b": 1})
    assert "/" not in cell_name({"prompt_pack": "/packs/x"})


def test_the_student_decides_what_is_left_to_it_whoever_names_it(tmp_path):
    file = write(tmp_path, "model: /models/qwen")
    for args in (["--model", "/models/qwen"], ["--config", file]):
        cell = cli.parse(JPOConfig, "JPO.", args)
        assert (cell.config.learning_rate, cell.config.max_samples) == (5e-6, None)
        assert cell.name == "default"
    embedded = cli.parse(JPOConfig, "JPO.", ["--config", file, "--model", EMBEDDED])
    assert (embedded.config.learning_rate, embedded.config.max_samples) == (2e-4, 768)
    assert embedded.name == "default"
    assert JPOConfig() == cli.parse(JPOConfig, "JPO.", []).config
    assert parsed("jpo", "--max-samples", "None").max_samples is None
    assert Cell(JPOConfig(learning_rate=2e-4), JPOConfig()).name == "default"


def help_text(capsys, *args, commands):
    with pytest.raises(SystemExit):
        cli.parse(commands, "A stage.", [*args, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("stage", ["sft", "jpo", "alol", "dpo", "grpo"])
def test_help_says_both_defaults_of_what_the_student_decides(stage, capsys):
    text = help_text(capsys, commands=CONFIGS[stage])
    for field in dataclasses.fields(CONFIGS[stage]):
        if "by_student" in field.metadata:
            values = field.metadata["by_student"]
            shown = [f"{v:g}" if v is not None else "None" for v in (values[False], values[True])]
            assert f"auto: {shown[0]}, for the embedded student {shown[1]}." in text, field.name


@pytest.mark.parametrize("stage", ["sweep", "evaluate", "judge", "plan", "counterparty"])
def test_help_says_how_a_language_model_is_named(stage, capsys):
    kind = {"plan": PlanConfig, "counterparty": CounterpartyStudy}.get(stage) or CONFIGS[stage]
    text = help_text(capsys, commands=kind)
    assert text.count("MODEL, PROVIDER:MODEL or URL#MODEL") >= len(kind.called)


def test_the_former_name_of_the_language_model_is_said_to_be_focal(tmp_path):
    with pytest.raises(InputError, match="--model is --focal now"):
        parsed("sweep", "--model", "qwen3.5-plus")
    file = write(tmp_path, "sweep: {model: qwen3.5-plus}")
    with pytest.raises(InputError, match="'model'; `model` is `focal` now; it has"):
        parsed("sweep", "--config", file)


def test_values_take_the_type_of_their_field(tmp_path):
    file = write(
        tmp_path,
        "run: runs/x\nscenarios: s.csv\nsweep: {max_cost_usd: 3, num_scenarios: null}\n"
        "sft: {learning_rate: 1e-4, lora_targets: [q_proj], max_steps: 7, emotion_free: true}\n"
        "quickstart: {domains: [student, crad]}",
    )
    sweep, sft = parsed("sweep", "--config", file), parsed("sft", "--config", file)
    assert sweep.run == Path("runs/x") and sweep.scenarios == Path("s.csv")
    assert isinstance(sweep.max_cost_usd, float) and sweep.num_scenarios is None
    assert sft.learning_rate == 1e-4 and sft.lora_targets == ("q_proj",)
    assert sft.max_steps == 7 and sft.emotion_free is True
    assert parsed("quickstart", "--config", file).domains == ("student", "crad")


@pytest.mark.parametrize(
    ("stage", "text", "message"),
    [
        ("jpo", "jpo: {kapa: 0.5}", r"jpo has no setting 'kapa'; it has .*kappa"),
        ("sweep", "sweep: {1: 2, x: 3}", r"a key is a text; put it in quotes"),
        ("jpo", "domian: crad", r"no stage has a setting 'domian'; the sections are sweep, judge"),
        ("iql", "jop: {kappa: 0.5}", r"no stage has a setting 'jop'"),
        ("jpo", "jpo: [kappa]", r"jpo must be a section"),
        ("jpo", "jpo: {kappa: half}", r"jpo\.kappa='half': expected float"),
        ("jpo", "jpo: {kappa: true}", r"jpo\.kappa=True: expected float"),
        ("jpo", "jpo: {kappa: null}", r"jpo\.kappa=None: expected float"),
        ("sweep", "sweep: {num_seeds: 2.5}", r"sweep\.num_seeds=2\.5: expected int"),
        ("sweep", "sweep: {num_seeds: true}", r"sweep\.num_seeds=True: expected int"),
        ("sweep", "sweep: {strict: 1}", r"sweep\.strict=1: expected bool"),
        ("sweep", "sweep: {focal: 7}", r"sweep\.focal=7: expected str"),
        ("sweep", "run: null", r"sweep\.run=None: expected Path"),
        ("sweep", "scenarios: [a.csv]", r"sweep\.scenarios=\['a\.csv'\]: expected .*Path"),
        ("sft", "sft: {lora_targets: q_proj}", r"sft\.lora_targets='q_proj': expected tuple"),
        (
            "iql",
            "domain: hospitals",
            r"iql\.domain='hospitals': expected Literal\['crad', 'disaster'",
        ),
        (
            "quickstart",
            "quickstart: {domains: [crd]}",
            r"quickstart\.domains=\['crd'\]: expected .*'crad'",
        ),
        (
            "jpo",
            "jpo: {ratio: best}",
            r"jpo\.ratio='best': expected Literal\['mean-token', 'sequence', 'token'",
        ),
        ("jpo", "jpo: {clip: 1.5}", r"jpo: clip=1\.5 must lie in \(0, 1\); .*--clip 0\.2"),
        ("jpo", "a: 1: 2", r"not valid YAML"),
        ("jpo", "kappa", r"expected `name: value` lines"),
        ("jpo", "", r"expected `name: value` lines"),
        ("jpo", "- kappa", r"expected `name: value` lines"),
    ],
)
def test_what_a_file_gets_wrong_is_named(tmp_path, stage, text, message):
    file = write(tmp_path, text)
    with pytest.raises(InputError, match=rf"(?s)--config {file}: .*{message}"):
        parsed(stage, "--config", file)


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--config nowhere\.yaml: No such file or directory"):
        parsed("jpo", "--config", "nowhere.yaml")
    with pytest.raises(InputError, match=rf"--config {tmp_path}: Is a directory"):
        parsed("jpo", "--config", str(tmp_path))
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match=r"bytes\.yaml: not valid YAML"):
        parsed("jpo", "--config", str(tmp_path / "bytes.yaml"))
    with pytest.raises(InputError, match="needs the path of a YAML file"):
        parsed("jpo", "--config")


@pytest.mark.parametrize(
    ("stage", "args", "message"),
    [
        ("jpo", ["--clip", "1.5"], "clip=1.5 must lie in (0, 1)"),
        ("jpo", ["--kappa", "half"], "half"),
        ("jpo", ["--domain", "hospitals"], "hospitals"),
        ("jpo", ["--kapa", "0.5"], "--kapa"),
    ],
)
def test_a_wrong_flag_ends_with_code_2(capsys, stage, args, message):
    with pytest.raises(SystemExit) as ended:
        parsed(stage, *args)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert message in " ".join((shown.err + shown.out).replace("│", " ").split())


# The configurations themselves


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("cls", "name", "bad", "good"),
    [
        (JPOConfig, "clip", (0, 1, 1.5, -0.2, NAN), (0.2, 0.99)),
        (JPOConfig, "kappa", (-0.1, 1.1, NAN), (0, 0.5, 1)),
        (JPOConfig, "kl_coef", (-0.04, NAN), (0, 0.04)),
        (JPOConfig, "num_epochs", (0, -1), (1,)),
        (JPOConfig, "max_steps", (0,), (1, None)),
        (SFTConfig, "top_fraction", (0, 1.1, NAN), (0.25, 1)),
        (SFTConfig, "learning_rate", (0, -1e-4, NAN), (1e-4,)),
        (SFTConfig, "batch_size", (0,), (1,)),
        (SFTConfig, "lora_rank", (0,), (1,)),
        (IQLConfig, "expectile", (0.4, 1, NAN), (0.5, 0.9)),
        (IQLConfig, "advantage_scale", (0, NAN), (3.0,)),
        (IQLConfig, "discount", (-0.1, 1.01, NAN), (0, 1)),
        (IQLConfig, "num_steps", (0,), (1,)),
        (IQLConfig, "batch_size", (0,), (1,)),
        (IQLConfig, "polyak", (0, 1.1, NAN), (0.005, 1)),
        (IQLConfig, "weight_cap", (0, NAN, INF), (100.0,)),
        (SFTConfig, "warmup_fraction", (-0.1, 1.1), (0, 1)),
        (SFTConfig, "max_grad_norm", (0, NAN), (1.0,)),
        (SFTConfig, "lora_alpha", (0, INF), (32.0,)),
        (SweepConfig, "num_test", (-1,), (0, 20)),
        (SweepConfig, "concurrency", (0,), (1,)),
        (SweepConfig, "num_seeds", (0,), (1,)),
        (SweepConfig, "num_scenarios", (0,), (1, None)),
        (SweepConfig, "max_turns", (1,), (2,)),
        (SweepConfig, "focal_temperature", (-0.1, 2.1, NAN), (0, 2)),
        (SweepConfig, "counterparty_temperature", (INF,), (0.7,)),
        (SweepConfig, "max_cost_usd", (-1.0, NAN, INF), (0.0, 0.5, None)),
        (SweepConfig, "timeout_s", (0.0, NAN, INF), (600.0,)),
        (SweepConfig, "max_reply_tokens", (0, -5), (1,)),
        (SweepConfig, "reader_max_tokens", (0,), (500,)),
        (JudgeConfig, "judge_max_tokens", (0,), (2000,)),
        (JudgeConfig, "repeats", (0,), (2,)),
        (EvaluateConfig, "num_seeds", (0,), (3,)),
        (EvaluateConfig, "num_scenarios", (0,), (1, None)),
        (EvaluateConfig, "max_turns", (0, 1), (2,)),
        (EvaluateConfig, "focal_temperature", (-1, NAN), (0, 2)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(cls, name, bad, good):
    for value in bad:
        with pytest.raises(InputError, match=rf"{name}={value} must"):
            cls(**{name: value})
    for value in good:
        assert getattr(cls(**{name: value}), name) == value


def test_identity_leaves_out_where_and_how_fast():
    one = SweepConfig(run=Path("runs/a"), concurrency=2, max_cost_usd=1.0)
    assert one.identity() == SweepConfig(run=Path("runs/b"), provider="openai").identity()
    assert one.identity() != SweepConfig(num_seeds=3).identity()
    assert one.identity() != SweepConfig(seed=1).identity()
    assert not {"run", "concurrency", "provider"} & one.identity().keys()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid_for_every_stage(path):
    settings = Settings.read(path)
    assert set(settings.sections) & set(CONFIGS)
    for stage, cls in CONFIGS.items():
        config = settings.config(cls)
        for name, value in (settings.sections.get(stage) or {}).items():
            shown = getattr(config, name)
            assert str(shown) == str(value) or list(shown) == value
    first = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()[:4]
    assert any(line.startswith("#   ") and "python scripts/" in line for line in first)


def test_a_missing_preset_is_a_clear_error():
    with pytest.raises(InputError, match=r"slow\.yaml is missing"):
        Settings.preset("slow")


OTHERS = (PlanConfig, PretrainConfig)


def test_every_flag_has_a_text():
    """What a field means stands below it, where `--help` finds it."""
    import tyro._docstrings as docstrings

    bare = [
        f"{cls.__name__}.{field.name}"
        for cls in {*CONFIGS.values(), *BENCHMARKS.values(), *PREFLIGHTS.values(), *OTHERS}
        for field in dataclasses.fields(cls)
        if not docstrings.get_field_docstring(cls, field.name, ())
    ]
    assert not bare


@pytest.mark.parametrize(
    "config",
    [
        SweepConfig(run=Path("r x"), scenarios=Path("a.csv"), num_seeds=3, seed=-1),
        SweepConfig(provider="openai", focal="yes", counterparty="1e3", max_cost_usd=2.0),
        IQLConfig(domain="student", learning_rate=3e-5, signal="turn-judge"),
        SFTConfig(lora_targets=("q_proj", "o_proj"), max_steps=5, emotion_free=True),
        JPOConfig(kappa=0.3, learning_rate=5e-7, reference="base", judge="null"),
        EvaluateConfig(cells={"jpo": "kappa=0.5-e21b"}, focal_temperature=0.0),
    ],
    ids=lambda config: config.stage,
)
def test_the_config_of_a_run_makes_the_run_again(tmp_path, config):
    path = tmp_path / "config.yaml"
    write_settings(path, Cell(config))
    assert Settings.read(path).config(type(config)) == config
    assert parsed(config.stage, "--config", str(path)) == config
    assert set(yaml.safe_load(path.read_text())[config.stage]) == {
        field.name for field in dataclasses.fields(config)
    }


def test_config_yaml_of_a_cell_leads_back_to_the_cell(tmp_path):
    write_settings(tmp_path / "preset.yaml", Cell(SFTConfig(run=tmp_path, max_steps=1)))
    args = ["--config", str(tmp_path / "preset.yaml"), "--learning-rate", "0.002"]
    cell = cli.parse(SFTConfig, "", args)
    write_settings(tmp_path / "config.yaml", cell)
    again = cli.parse(SFTConfig, "", ["--config", str(tmp_path / "config.yaml")])
    assert again[:2] == cell[:2] and again.name == cell.name != "default"


ALL_CONFIGS = (*CONFIGS.values(), PlanConfig, ExportConfig, ImportConfig, PretrainConfig)
PATHS = [
    (cls, field.name)
    for cls in (*ALL_CONFIGS, *BENCHMARKS.values())
    for field in dataclasses.fields(cls)
    if "Path" in str(field.type) or field.metadata.get("is_path")
]


@pytest.mark.parametrize(
    ("cls", "name"), PATHS, ids=lambda one: one if isinstance(one, str) else one.__name__
)
def test_home_is_expanded_in_every_path(cls, name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    value = getattr(cls(**{name: Path("~/x y")}), name)
    assert str(value) == "/home/ann/x y"


def test_home_is_expanded_in_flags_files_and_the_files_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "run: ~/runs/a\nsweep: {scenarios: ~/own.csv}\nsft: {model: ~/Qwen}")
    sweep = parsed("sweep", "--config", "~/own.yaml", "--prompt-pack", "~/pack")
    assert (sweep.run, sweep.scenarios) == (tmp_path / "runs/a", tmp_path / "own.csv")
    assert sweep.prompt_pack == tmp_path / "pack"
    assert parsed("sft", "--config=~/own.yaml").model == str(tmp_path / "Qwen")
    assert parsed("evaluate", "--student", "~/Qwen").student == str(tmp_path / "Qwen")
    assert parsed("evaluate", "--focal", "~author/latest").focal == "~author/latest"  # no folder


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-at-all/x", "run=~nobody-at-all/x: there is no such user"),
        ("~", None),
        ("x/~/y", None),
        ("r\udcff", r"run='r\\udcff' is no text in this locale's encoding \(utf-8\)"),
    ],
)
def test_paths_that_can_not_be_named(path, message):
    if message is None:
        assert SweepConfig(run=Path(path)).run == Path(path).expanduser()
    else:
        with pytest.raises(InputError, match=message):
            SweepConfig(run=Path(path))


# Errors


def ended(error: BaseException | None) -> int:
    def action(cell: Cell) -> None:
        if error is not None:
            raise error

    try:
        cli.main(SimulatorConfig, "", action, args=[])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("kind", [InputError, StaleInputError, ApiError, DivergenceError])
def test_an_error_for_the_user_is_one_message(capsys, kind):
    assert ended(kind("clip=1.5 is wrong.")) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: clip=1.5 is wrong.\n" and shown.out == ""


def test_a_full_disk_and_an_interruption(capsys):
    assert ended(OSError(errno.ENOSPC, "No space left on device", "runs/a.jsonl")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: No space left on device (runs/a.jsonl);")
    assert ended(KeyboardInterrupt()) == 130
    assert "start again to go on" in capsys.readouterr().err


def test_nothing_to_tell_and_a_mistake_of_ours(capsys):
    assert ended(None) == 0
    with pytest.raises(ZeroDivisionError):
        ended(ZeroDivisionError())
    with pytest.raises(OSError, match="odd"):
        ended(OSError("odd"))
    assert capsys.readouterr().err == ""


EVIL = "https://collector.example/v1"


@pytest.mark.parametrize(
    "text",
    [
        f"provider: dashscope\nbase_url: {EVIL}",
        f"sweep: {{provider: dashscope, base_url: {EVIL}}}",
        f"provider: dashscope\njudge: {{base_url: {EVIL}}}",  # of a stage made on the way
    ],
)
def test_a_file_sends_no_key_to_an_address_of_its_own(tmp_path, monkeypatch, text):
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-secret")
    path = tmp_path / "received.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{EVIL} .*DASHSCOPE_API_KEY.*--base-url") as refused:
        parsed("sweep", "--config", str(path))
    assert "sk-secret" not in str(refused.value)
    typed = parsed("sweep", "--config", str(path), "--base-url", EVIL)
    assert typed.base_url == EVIL
    monkeypatch.delenv("DASHSCOPE_API_KEY")
    parsed("sweep", "--config", str(path))  # no key, nothing to send


def test_a_provider_that_is_typed_gets_no_address_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    path = tmp_path / "received.yaml"
    path.write_text(f"base_url: {EVIL}")
    with pytest.raises(InputError, match="would be sent your key in OPENAI_API_KEY"):
        parsed("sweep", "--config", str(path), "--provider", "openai")
    path.write_text("base_url: http://127.0.0.1:8000/v1")  # this machine's own server
    parsed("sweep", "--config", str(path), "--provider", "openai")


@pytest.mark.parametrize("text", [f"focal: {EVIL}#m", f"sweep: {{counterparty: {EVIL}#m}}"])
def test_nor_does_a_model_that_a_file_names_by_its_address(tmp_path, monkeypatch, text):
    monkeypatch.setenv("EMODISTILL_API_KEY", "sk-secret")
    path = tmp_path / "received.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{EVIL}#m would be sent your key in EMODISTILL_API_KEY"):
        parsed("sweep", "--config", str(path))
    role = "focal" if "focal" in text else "counterparty"
    parsed("sweep", "--config", str(path), f"--{role}", f"{EVIL}#m")
    path.write_text("focal: http://127.0.0.1:8000/v1#m")
    parsed("sweep", "--config", str(path))


@pytest.mark.parametrize("text", [f"url: {EVIL}", f"verify-adapter: {{url: {EVIL}}}"])
def test_nor_does_one_that_names_the_server_of_an_adapter(tmp_path, monkeypatch, text):
    monkeypatch.setenv("EMODISTILL_API_KEY", "sk-secret")
    path = tmp_path / "received.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"url={EVIL} would be sent .*--url {EVIL}"):
        parsed("verify-adapter", "--config", str(path))
    typed = parsed("verify-adapter", "--config", str(path), "--url", EVIL)
    assert typed.url == EVIL
    monkeypatch.delenv("EMODISTILL_API_KEY")
    assert parsed("verify-adapter", "--config", str(path)).url == EVIL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: [*a, *a]", "anchors"),
        ("seed: 2020-01-01", "expected int"),
        ("seed: !!set {1}", "tags"),
        ("seed: 1:30", "no decimal number"),
        ("seed: 010", "no decimal number"),
        ("seed: .inf", "no finite number"),
        ("seed: 1\nseed: 2", "seed comes twice"),
        ("seed: " + "9" * 5_000, "an integer of 5000 digits"),
        ("seed: " + "[" * 500, "nested"),
        ("- " * 500 + "1", "nested"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_beyond_plain_values_is_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        parsed("sweep", "--config", str(path))
    assert len(str(refused.value)) < 1_500
