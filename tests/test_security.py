"""Keys stay out of configs and logs, and nobody is served who should not be."""

import os
import re
import subprocess
import sys
import time
import tomllib
from threading import Thread

import pytest
from pydantic import ValidationError

from tests.conftest import ROOT, small_config
from workbench import access
from workbench.config import RunConfig
from workbench.events import event_log, read_lines
from workbench.redact import redacted, refuse_secrets
from workbench.settings import ConfigError, build_config, load_settings, parse_assignments

KEY = "sk-" + "proj-abc123DEF456ghi789JKL"
SECRETS = {
    "a key of a provider": ("prompt.system", f"Think. {KEY}"),
    "a hub token": ("model", "hf_" + "aBcDeFgHiJ" * 4),
    "a token of version control": ("model", "ghp_" + "aBcDeFgHiJ" * 4),
    "an address with a password": ("teacher.url", "https://ann:" + "hunter2hunter2@host/v1"),
    "an address with a key": ("teacher.url", "https://host/v1?api_key=" + "hunter2hunter2"),
    "a JSON Web Token": ("model", "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"),
    "a private key": ("prompt.system", "-----BEGIN RSA PRIVATE KEY-----\nabcdef"),
    "in a list": ("eval_tasks", ["gsm8k", KEY]),
    "where a number is wanted": ("iterations", KEY),
    "under a name of its own": ("api_key", "hunter2hunter2"),
    "as a name": (KEY, 1),
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_config_with_a_key_in_it_is_refused_in_a_sentence_without_the_key(kind):
    name, value = SECRETS[kind]
    with pytest.raises(ConfigError) as refused:
        build_config(load_settings("pocket"), {"teacher.model": "m", name: value})
    said = str(refused.value)
    assert "holds" in said and "environment" in said and "\n" not in said
    for secret in (KEY, "hunter2hunter2", "aBcDeFgHiJ", "eyJzdWIi", "abcdef"):
        assert secret not in said


def test_a_secret_of_the_environment_is_refused_whatever_it_looks_like(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery staple")
    with pytest.raises(ConfigError, match="prompt.system holds a secret of the environment"):
        small_config(**{"prompt.format": "chat", "prompt.system": "Say: correct horse battery staple"})
    with pytest.raises(ValidationError) as refused:  # as a notebook would make it
        RunConfig(model="correct horse battery staple", train_task="gsm8k")
    assert "horse" not in str(refused.value)


@pytest.mark.parametrize("value", ["Qwen/Qwen2.5-0.5B", "data/sk-learn-model-nothing-else", "http://[::1]:8000/v1",
                                   "none", "disk-aaaaaaaaaaaaaaaaaaaaaaa1", "Solve: a@b:c"])  # fmt: skip
def test_what_is_no_secret_is_taken(value, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    refuse_secrets({"model": value})
    assert redacted(value) == value


def test_a_mistyped_assignment_does_not_show_a_key():
    with pytest.raises(ConfigError) as refused:
        parse_assignments([KEY])
    assert KEY not in str(refused.value)


def test_the_log_of_a_process_holds_no_secret():
    script = (
        "import logging, os, sys; from workbench.redact import redact_output; redact_output();"
        "logging.basicConfig(); logging.warning('key %s', os.environ['MY_TOKEN']);"
        "print('http://u:pass' + 'word@host/v1', sys.stdout.isatty()); raise ValueError(os.environ['MY_TOKEN'])"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"MY_TOKEN": "swordfish-17"}
    )
    assert "swordfish-17" not in made.stderr + made.stdout and "password" not in made.stdout
    assert made.stderr.count("[secret]") == 2 and "http://[secret]@host/v1 False" in made.stdout


def test_an_event_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "swordfish-17")
    event_log(tmp_path / "events.jsonl")("note", text=f"refused: swordfish-17 and {KEY}", step=3)
    rows, _ = read_lines(tmp_path / "events.jsonl")
    assert rows[0]["text"] == "refused: [secret] and [secret]" and rows[0]["step"] == 3


AUTH = {"client_id": "id", "client_secret": "s", "cookie_secret": "c" * 40, "server_metadata_url": "u"}


@pytest.mark.parametrize(
    ("address", "protected", "password", "auth", "refused"),
    [
        ("127.0.0.1", True, None, None, None),
        ("localhost", True, None, None, None),
        ("::1", False, None, None, None),
        ("127.0.0.1", True, "correct horse", None, None),
        (None, True, None, None, "every address, .* no login"),
        ("", True, None, None, "every address, .* no login"),
        ("0.0.0.0", True, None, None, "0.0.0.0, .* no login"),
        ("::", True, None, None, "no login"),
        ("192.168.1.2", True, None, None, "no login"),
        ("workbench.example.org", True, None, None, "no login"),
        ("localhost.example.org", True, None, None, "no login"),
        ("unix:///run/app.sock", True, None, None, "no login"),
        ("0.0.0.0", True, "", None, "no login"),
        ("0.0.0.0", True, "correct horse", None, None),
        ("0.0.0.0", False, "correct horse", None, "forged requests is off"),
        ("0.0.0.0", True, "short", None, "has 5 characters; give it 12"),
        ("127.0.0.1", True, "short", None, "has 5 characters; give it 12"),
        ("0.0.0.0", False, None, AUTH, "forged requests is off"),
        ("127.0.0.1", True, None, {}, "cannot be used: mend the file"),
        ("127.0.0.1", True, "correct horse", {}, "cannot be used: mend the file"),
        ("0.0.0.0", True, None, AUTH | {"cookie_secret": "guess"}, "cookie_secret 32 characters"),
    ],
)
def test_who_is_served_where(address, protected, password, auth, refused, monkeypatch):
    monkeypatch.setattr(access, "find_spec", lambda name: "there")
    monkeypatch.delenv(access.PASSWORD, raising=False)
    if password is not None:
        monkeypatch.setenv(access.PASSWORD, password)
    said = access.refusal(address, protected, auth)
    assert said is None if refused is None else re.search(refused, said) and "\n" not in said
    assert not password or not said or password not in said


def test_the_shipped_config_serves_this_machine_alone():
    shipped = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())["server"]
    assert access.is_loopback(shipped["address"]) and shipped["enableXsrfProtection"] is True


def test_a_wrong_password_costs_a_pause_that_all_sessions_share(monkeypatch):
    monkeypatch.setenv(access.PASSWORD, "pässwörd of some length")
    monkeypatch.setattr(access, "PAUSE_S", 0.2)
    assert access.matches("pässwörd of some length")
    began, found = time.monotonic(), []
    tries = [Thread(target=lambda word=word: found.append(access.matches(word))) for word in ("", "x", "pässwörd")]
    for one in tries:
        one.start()
    for one in tries:
        one.join()
    assert found == [False] * 3 and time.monotonic() - began > 0.6


def test_a_provider_lets_in_whom_it_should(monkeypatch):
    ann = {"email": "Ann@example.org", "email_verified": True}
    assert access.may_enter(ann, "") and access.may_enter(ann, "bob@x.org, ann@example.org")
    assert access.may_enter(ann, "@example.org")
    for other in ({}, {"email": "ann@example.org.evil.net"}, {"email": "x@evil.net"}, ann | {"email_verified": False}):
        assert not access.may_enter(other, "ann@example.org, @example.org")
