"""What the tests of the command line share."""

from collections.abc import Callable, Iterator

import pytest
import torch

from pygpt.cli import main

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands set torch's number of threads; the next test gets it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
