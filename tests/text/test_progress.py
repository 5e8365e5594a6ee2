"""The bar follows the reading, up to its end, and changes nothing."""

import io

import pytest
from rich.console import Console

from pygpt.text import Document
from pygpt.text import progress as module
from pygpt.text.progress import tracked

DOCUMENTS = [Document("a", ["some ", "words"]), Document("b", "é" * 50), Document("c", "")]


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_documents_come_through_and_the_bar_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, show: bool, terminal: bool
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda stderr: Console(file=output, force_terminal=terminal, width=80))
    read = [(document.name, "".join(document.pieces)) for document in tracked(DOCUMENTS, "reading", show)]
    assert read == [(document.name, document.text) for document in DOCUMENTS]
    assert ("reading" in output.getvalue()) == (show and terminal)


def test_the_bar_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    advanced: list[float] = []
    monkeypatch.setattr(module.Progress, "advance", lambda self, task, size: advanced.append(size))
    for document in tracked(DOCUMENTS, "reading", show=False):
        assert document.text is not None
    assert advanced == [5, 5, 100, 0]
