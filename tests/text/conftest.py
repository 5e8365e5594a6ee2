from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gpt2_folder() -> Path:
    """GPT-2's published vocabulary, which lies beside the repository where there is one."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2-bpe"
    if not folder.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not in {folder}")
    return folder
