"""The help of every command as its user sees it."""

import pytest
from click.testing import CliRunner

from mpsim.cli import _COMMANDS, main


def shown(*arguments):
    result = CliRunner().invoke(main, [*arguments, "--help"])
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_of_a_command_has_no_marks_for_click(name):
    text = shown(name)
    assert text.startswith(f"Usage: main {name} ")
    assert "\\b" not in text
    assert "\b" not in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "  mpsim init > mine.yaml             a commented scenario to start from"),
        (("demo",), "  two-layer   two linear layers, cut by layer, by column and by row"),
    ],
)
def test_examples_stand_on_lines_of_their_own(arguments, line):
    assert line in shown(*arguments).splitlines()
