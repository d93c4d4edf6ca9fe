"""The words of the command line: every spelling that DRBD's users have in their fingers and scripts."""

from __future__ import annotations

from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.cli.command_table import COMMANDS, GLOBAL_OPTIONS, Takes
from replicator.cli.parser import nearest, options_with_value, overview, parse
from replicator.errors import ReplicatorError, UsageError


@pytest.mark.parametrize(
    "line",
    [
        "primary --force r0",
        "--force primary r0",
        "primary r0 --force",
        "-- --force primary r0",
        "primary -- --force r0",
        "-f primary r0",
    ],
)
def test_force_may_stand_anywhere(line: str) -> None:
    found = parse(line.split())
    assert found.command is COMMANDS["primary"]
    assert found.names == ["r0"]
    assert found.options["force"] is True


@pytest.mark.parametrize(
    "line",
    [
        "-- --overwrite-data-of-peer primary r0",
        "primary --overwrite-data-of-peer r0",
        "-- -o primary r0",
    ],
)
def test_the_8_3_spelling_of_a_forced_promotion_is_understood(line: str) -> None:
    found = parse(line.split())
    assert found.options["overwrite_data_of_peer"] is True
    assert found.options["force"] is False


@pytest.mark.parametrize(
    "line", ["connect --discard-my-data r0", "-- --discard-my-data connect r0"]
)
def test_discard_my_data_may_stand_before_or_after_connect(line: str) -> None:
    assert parse(line.split()).options["discard_my_data"] is True


@pytest.mark.parametrize(
    "line",
    [
        "-c F --node n --run-dir D up r0 r1",
        "up -c F r0 --node n r1 --run-dir D",
        "up r0 r1 --config-file=F --node=n --run-dir=D",
        "-cF --node n up r0 r1 --run-dir D",
    ],
)
def test_general_options_may_stand_before_and_after_the_command(line: str) -> None:
    found = parse(line.split())
    assert found.names == ["r0", "r1"]
    assert (found.options["config_file"], found.options["node"], found.options["run_dir"]) == (
        "F", "n", "D",
    )  # fmt: skip


def test_a_negative_or_absurd_time_is_refused_with_its_name() -> None:
    for bad in ("-5", "nan", "inf", "soon"):
        with pytest.raises(UsageError, match="timeout"):
            parse(["wait-connect", f"--timeout={bad}", "r0"])
    assert parse(["wait-connect", "--timeout", "2.5", "r0"]).options["timeout"] == 2.5


def test_an_unknown_command_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["primry", "r0"])
    assert caught.value.message == "Unknown command 'primry'"
    assert caught.value.hint == "Did you mean 'primary'?"
    assert caught.value.exit_code == 1


def test_a_word_that_is_like_no_command_suggests_none() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["nonsense", "r0"])
    assert caught.value.hint == "Try: replicator --help"


def test_a_command_of_drbdadm_that_is_not_here_says_what_to_do_instead() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["syncer", "r0"])
    assert caught.value.message == "replicator has no command 'syncer'"
    assert "replicator down R; replicator up R" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "no command"),
        ("up", "No resource names specified"),
        ("role", "No resource names specified"),
        ("up --bogus r0", "--bogus"),
        ("up r0 -c", "config-file"),
        ("sh-nop r0", "sh-nop takes no resource, found 'r0'"),
        ("up --json r0", "--json"),
        ("verify --start=-4K r0", "--start"),
        ("verify --stop=-8s r0", "--stop"),
        ("restore-md r0/0 r0/1 FILE", "one volume"),
        ("help nosuch", "Unknown command 'nosuch'"),
        ("nosuch --help", "Unknown command 'nosuch'"),
    ],
)
def test_wrong_words_are_usage_errors_that_name_them(line: str, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert part in caught.value.message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_names_it_its_options_and_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    text = parse([name, "--help"]).help
    assert text == parse(["help", name]).help == parse(["-h", name, "r0"]).help
    assert name in text
    assert command.summary[1:].split()[0] in text
    for option in (*command.options, *GLOBAL_OPTIONS):
        assert all(spelling in text for spelling in option.names)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_handler(name: str) -> None:
    module, _, function = COMMANDS[name].handler.partition(":")
    assert callable(getattr(import_module(f"replicator.cli.{module}"), function))


def test_the_overview_lists_every_command() -> None:
    text = overview()
    assert text == parse(["--help"]).help
    for command in COMMANDS.values():
        assert f"  {command.name} " in text


def test_an_option_takes_a_value_in_all_commands_or_in_none() -> None:
    valued = options_with_value()
    for command in COMMANDS.values():
        for option in (*command.options, *GLOBAL_OPTIONS):
            for spelling in option.names:
                assert (spelling in valued) == bool(option.metavar), (command.name, spelling)


def test_no_option_has_two_meanings_within_one_command() -> None:
    for command in COMMANDS.values():
        spellings = [s for o in (*command.options, *GLOBAL_OPTIONS) for s in o.names]
        assert len(spellings) == len(set(spellings)), command.name


def test_nearest_prefers_likeness_and_gives_up_on_nonsense() -> None:
    assert nearest("dwon", ["up", "down"]) == "down"
    assert nearest("zzzzzz", ["up", "down"]) == ""


words = st.sampled_from(
    [
        *COMMANDS,
        "--force",
        "-c",
        "--node",
        "--",
        "-",
        "r0",
        "r0/0",
        "all",
        "--timeout",
        "5",
        "--x",
        "",
    ]
) | st.text(max_size=6)


@given(st.lists(words, max_size=6))
def test_no_words_whatever_end_in_anything_but_an_invocation_or_a_usage_error(
    line: list[str],
) -> None:
    try:
        found = parse(line)
    except ReplicatorError as error:
        assert isinstance(error, UsageError)
        assert error.message
    else:
        assert found.command or found.help or found.version
        if found.command and found.command.takes is Takes.NOTHING:
            assert not found.names
