"""Providers as data: the built-in ones, one's own, and what is wrong with some."""

import re
from datetime import date
from pathlib import Path

import pytest

from emodistill.errors import InputError
from emodistill.llm import Price, get_provider
from emodistill.llm.providers import load_providers


def test_builtin_providers_are_usable():
    providers = load_providers()
    assert {"dashscope", "openai", "deepseek", "openrouter", "vllm", "llamacpp"} <= set(providers)
    simulator = get_provider("simulator", base_url="http://127.0.0.1:8000/v1/")
    assert simulator.base_url == "http://127.0.0.1:8000/v1"
    assert simulator.price("sim-teacher") == Price(0.0, 0.0)
    assert simulator.default_model("judge") == "sim-judge"
    assert providers["dashscope"].price("qwen3.5-plus").cost_usd(1_000_000, 1_000_000) == 2.8
    assert providers["dashscope"].price("another") is None


def test_the_whole_url_of_the_endpoint_is_understood():
    assert get_provider(base_url="https://h/v1/chat/completions").base_url == "https://h/v1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("opanai",), "--provider opanai is none of dashscope, dashscope-beijing"),
        (("simulator",), "give --base-url"),
        ((None,), "give --base-url"),
    ],
)
def test_unusable_providers(arguments, words):
    with pytest.raises(InputError, match=words):
        get_provider(*arguments)


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "localhost"])
def test_unusable_urls(url):
    with pytest.raises(InputError, match="must look like http"):
        get_provider(base_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter22@host/v1",
        "https://host/v1?key=hunter22",
        "ftp://user:hunter22@host/v1",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(InputError) as caught:
        get_provider(base_url=url)
    assert "hunter22" not in str(caught.value)


def test_keys_come_from_the_environment(monkeypatch):
    provider = load_providers()["openai"]
    monkeypatch.setenv("OPENAI_API_KEY", " a1, b2,,c3 ")
    assert provider.read_keys() == (("a1", "b2", "c3"),)
    monkeypatch.setenv("OPENAI_API_KEY", "a1,b2; c3;")
    assert provider.read_keys() == (("a1", "b2"), ("c3",))
    monkeypatch.setenv("OPENAI_API_KEY", "good,bad\nkey")
    with pytest.raises(InputError, match="OPENAI_API_KEY: key number 2") as caught:
        provider.read_keys()
    assert "bad" not in str(caught.value).replace("OPENAI", "")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        provider.read_keys()
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert load_providers()["vllm"].read_keys() == ()


def test_a_provider_without_a_default_model_says_which_flag():
    with pytest.raises(InputError, match=r"no default focal model.*--focal"):
        load_providers()["vllm"].default_model("focal")


def test_an_own_file_adds_and_replaces(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[openai.profiles."gpt-9"]\nprice = { input = 1, output = 2.5 }\n'
        '[house]\nbase_url = "http://house:1/v1"\n'
    )
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    assert get_provider("openai").price("gpt-9") == Price(1.0, 2.5)
    assert get_provider("openai").base_url == "https://api.openai.com/v1"
    assert get_provider("house").base_url == "http://house:1/v1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[house]\n", "missing required field `base_url`"),
        ('[house]\nbase_url = "http://h/v1"\nprice = 3\n', "unknown field `price`"),
        (
            '[house]\nbase_url = "http://h/v1"\nprofiles.m = { price = 3 }\n',
            r"house.profiles.'m'.*price.*per million",
        ),
        ("[house\n", "no readable TOML"),
        ('[house]\nbase_url = "http://h/v1"\nprofiles.m = 3\n', r"\[house.profiles.'m'\]"),
        ('[house]\nbase_url = "http://h/v1"\nprofiles = 3\n', "profiles must be tables"),
        (
            '[openai.profiles."*"]\nlimits = { tokens_per_minute = 0 }\n',
            "> 0",
        ),
        (
            '[openai.profiles."*"]\nlimits = { tokens = 1 }\n',
            "field `tokens`",
        ),
        ('[house]\nbase_url = "http://h/v1"\ndead_codes = "x"\n', "dead_codes"),
        ('[house]\nbase_url = "ftp://h/v1"\n', "must look like http"),
        ('[house]\nname = "x"\nbase_url = "http://h/v1"\n', "without a name"),
        ('house = "x"\n', "must be a table"),
        ('[house]\nbase_url = "http://h/v1"\nkey = "maybe"\n', r"'maybe' - at `\$\.key`"),
    ],
)
def test_a_broken_own_file_is_named(tmp_path, monkeypatch, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    with pytest.raises(InputError, match=words):
        load_providers()


def test_cached_prompt_tokens_have_their_own_price():
    price = Price(1.0, 2.0, 0.1)
    assert price.cost_usd(1_000_000, 0, 600_000) == pytest.approx(0.46)
    assert Price(1.0, 2.0).cost_usd(1_000_000, 0, 600_000) == pytest.approx(1.0)


CALLS, TOKENS = {"sweep": 73_300, "judging": 39_700}, {"sweep": (785, 51), "judging": (972, 9)}
"""Of 8,000 dialogues, and of each call, as docs/sweep.md says."""


def test_the_costs_on_the_page_are_those_of_the_prices():
    page = (Path(__file__).parents[1] / "docs/sweep.md").read_text(encoding="utf-8")
    table = page.split("| way | sweep | judging | both |\n")[1].split("\n\n")[0]
    providers, checked, provider = load_providers(), 0, None
    for line in table.splitlines()[1:]:
        way, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if named := re.match(r"`--provider (\S+)`.*`(\S+)`", way):
            provider, model = providers[named[1]], named[2]
        price = provider.price(model)
        cached = 0.7 if "cache" in way else 0.0
        shares = {
            "sweep": 0.5 if "dashscope-batch" in way else 1.0,
            "judging": price.batch if "file batch" in way else 1.0,
        }
        usd = {
            stage: num_calls
            * shares[stage]
            * price.cost_usd(*TOKENS[stage], cached * TOKENS[stage][0])
            for stage, num_calls in CALLS.items()
        }
        expected = (*usd.values(), sum(usd.values()))
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.006), way
        checked += 1
    assert checked == 9


def test_every_built_in_price_is_dated_or_free_or_ends():
    for provider in load_providers().values():
        for pattern, _ in provider.profiles:
            profile = provider.profile(pattern.replace("*", ""))
            if (price := profile.price) is not None and price.output:
                assert price.dated or profile.ends, (provider.name, pattern)
            assert profile.successor is None or profile.ends


@pytest.mark.parametrize(
    ("model", "today", "told"),
    [
        ("gpt-6-luna", date(2026, 12, 1), []),
        ("gpt-6-luna-2026-08", date(2027, 3, 1), ["prices of 2026-11-28, 93 days old; check them"]),
        ("gpt-4o-mini", date(2026, 11, 28), ["ends on 2027-01-14; use gpt-6-luna"]),
        ("gpt-4o-mini", date(2026, 11, 1), []),
    ],
)
def test_old_prices_and_models_near_their_end_are_warned_of(model, today, told):
    notices = load_providers()["openai"].profile(model).notices(f"{model} at openai", today)
    assert [
        notice for notice, words in zip(notices, told, strict=True) if words not in notice
    ] == []


def test_a_model_that_is_gone_is_refused_from_its_day_on():
    profile = load_providers()["openai"].profile("gpt-4o-mini")
    with pytest.raises(InputError, match="since 2027-01-14; use gpt-6-luna"):
        profile.notices("gpt-4o-mini", date(2027, 1, 14))


def test_the_file_of_ones_own_in_the_docs_keeps_the_price_by_batch_and_the_growth(
    tmp_path, monkeypatch
):
    text = Path(__file__).parents[1].joinpath("docs/sweep.md").read_text().split("```toml\n")[1]
    (tmp_path / "my-providers.toml").write_text(text.partition("```")[0])
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(tmp_path / "my-providers.toml"))
    provider = load_providers()["dashscope"]
    assert provider.batch_share("qwen3.5-plus") == 0.5
    assert provider.profile("qwen3.5-plus").limits.growth == 1.8


def test_the_files_of_providers_are_read_again_only_where_one_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    path.write_text('[lab]\nbase_url = "http://h:1/v1"\n')
    first = load_providers()
    assert load_providers()["lab"] is first["lab"]
    del first["lab"]
    assert "lab" in load_providers()
    path.write_text('[lab]\nbase_url = "http://h:2/v1"\n')
    assert load_providers()["lab"].base_url == "http://h:2/v1"


def test_the_last_matching_pattern_has_its_way_entry_by_entry(tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text('[deepseek.profiles."deepseek-*"]\nprice = { input = 1, output = 2 }\n')
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    profile = load_providers()["deepseek"].profile("DeepSeek-Flash")
    assert profile.price == Price(1.0, 2.0)
    assert profile.thinking_off == {"thinking": {"type": "disabled"}}


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ('{ input = 1, output = 2, peak_hours = ["Mon 1-4"] }', "'Mon 1-4' is not like"),
        ('{ input = 1, output = 2, peak_hours = ["Mon-Fri 04-01"] }', "'Mon-Fri 04-01' is not"),
        ('{ input = 1, output = 2, currency = "CNY" }', "usd must say how many US dollars"),
        ("{ input = -1, output = 2 }", ">= 0"),
        ('{ input = 1, output = 2, dated = "yesterday" }', "dated"),
    ],
)
def test_a_price_that_cannot_be_read_is_named(tmp_path, monkeypatch, price, words):
    path = tmp_path / "mine.toml"
    path.write_text(f'[openai.profiles."x"]\nprice = {price}\n')
    monkeypatch.setenv("EMODISTILL_PROVIDERS", str(path))
    with pytest.raises(InputError, match=words):
        load_providers()
