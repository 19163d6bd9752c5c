"""Settings: what is accepted, and what a mistake is answered with."""

import json
import shlex

import pytest

from workbench.settings import (
    ConfigError,
    build_config,
    command,
    load_settings,
    parse_assignments,
    preset_names,
    setting,
)

POCKET = load_settings("pocket")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("alpha=1.5", "merge.alpha: Input should be less than or equal to 1, got 1.5"),
        ("alpha=-0.1", "merge.alpha: Input should be greater than or equal to 0"),
        ("drop_rate=1", "merge.drop_rate: Input should be less than 1, got 1"),
        ("alpha=NaN", "merge.alpha: Input should be a finite number"),
        ("learning_rate=0", "sft.learning_rate: Input should be greater than 0"),
        ("iterations=0", "iterations: Input should be greater than or equal to 1"),
        ("method=magic", "method: Input should be 'vanilla', 'mixture', 'accumulation' or 'imm', got 'magic'"),
        ("alhpa=0.5", "unknown setting 'alhpa'; known here: model,"),
        ("merge.beta=1", "unknown setting 'merge.beta'; known here: alpha, drop_rate"),
        ("eval_tasks=pocket_steps", "eval_tasks must not name the train task"),
        ("alpha", "--set wants key=value, got 'alpha'"),
    ],
)
def test_a_mistake_is_named_with_its_range(assignment, said):
    with pytest.raises(ConfigError) as error:
        build_config(POCKET, parse_assignments([assignment]))
    assert said in str(error.value)


def test_short_and_dotted_names_and_lists():
    config = build_config(
        POCKET,
        parse_assignments(["alpha=0.3", "temperatures=0.5,0.9", "sft.schedule=linear", "eval_tasks=svamp,asdiv"]),
    )
    assert config.merge.alpha == 0.3
    assert config.sample.temperatures == (0.5, 0.9)
    assert config.sft.schedule == "linear"
    assert config.eval_tasks == ("svamp", "asdiv")


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_survive_json(name):
    config = build_config(load_settings(name))
    assert build_config(json.loads(config.model_dump_json())) == config


def test_files_are_read_and_mistakes_named(tmp_path):
    (tmp_path / "a.toml").write_text('model = "m"\ntrain_task = "gsm8k"\n[merge]\nalpha = 0.7\n')
    assert build_config(load_settings(tmp_path / "a.toml")).merge.alpha == 0.7
    (tmp_path / "b.toml").write_text("model = ")
    with pytest.raises(ConfigError, match=r"b\.toml cannot be read"):
        load_settings(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match="no preset or file 'pokcet'; presets are: .*pocket"):
        load_settings("pokcet")


def test_the_command_shown_makes_the_same_config():
    changes = {"alpha": 0.25, "eval_tasks": ["svamp", "mawps"], "model": "my dir/model", "num_questions": 7}
    config = build_config(POCKET, changes)
    words = shlex.split(command("pocket", config, list(changes)))
    again = build_config(POCKET, parse_assignments([word for word in words if "=" in word]))
    assert again == config
    assert setting(config, "alpha") == 0.25


def test_the_command_without_a_preset_gives_what_is_required():
    changes = {"model": "my dir/model", "train_task": "gsm8k", "alpha": 0.5, "temperatures": "0.1, 0.7"}
    config = build_config({}, changes)
    words = shlex.split(command(None, config, list(changes)))
    assert words[:2] == ["workbench", "run"] and "alpha=0.5" not in words and "--preset" not in words
    assert build_config({}, parse_assignments([word for word in words if "=" in word])) == config


def test_a_setting_of_an_optional_section_is_set_and_a_misspelt_one_named():
    assert build_config(load_settings("pocket"), {"sft.lora.rank": 3}).sft.lora.rank == 3
    assert build_config(load_settings("pocket") | {"sft": {"lora": None}}, {"sft.lora.rank": 3}).sft.lora.rank == 3
    with pytest.raises(ConfigError, match="unknown setting 'sft.lora.rnk'; known here: rank, alpha"):
        build_config(load_settings("pocket"), {"sft.lora.rnk": 3})
