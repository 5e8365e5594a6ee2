"""What the tests of the command line share."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pygpt.cli import main
from pygpt.train.checkpoint import Checkpoints

Out = pytest.CaptureFixture[str]
Run = Callable[..., str]

FLAGS = shlex.split(
    "--tokenizer char --layers 1 --heads 2 --width 16 --context 16 --batch-size 2 --steps 4 "
    "--save-every 2 --eval-every 2 --sample-every 3 --log-every 1 --lr 0.03"
)


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


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 40)
    return path


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--data", str(text), "--out", str(folder), *FLAGS]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def newest(run: Path) -> Path:
    return Checkpoints(run / "checkpoints").newest()
