"""What the tests of the command line share."""

from collections.abc import Callable

import pytest

from pygpt.cli import main

Run = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must end with code 2 and one line; gives the line."""

    def run(*words: str) -> str:
        try:
            code = main(words)
        except SystemExit as exit_:  # argparse's own way out
            code = exit_.code  # type: ignore[assignment]
        error = capsys.readouterr().err
        assert code == 2, error
        assert error.count("\n") == 1, error
        assert "Traceback" not in error
        return error

    return run
