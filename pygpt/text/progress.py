"""A progress bar over the text that is being read."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pygpt.text.corpus import Document


def tracked(documents: Iterable[Document], description: str, show: bool) -> Iterator[Document]:
    """Give the documents, their pieces to be read once each, with a progress bar that follows the reading.

    Args:
        documents: with their sizes.
        description: what is being done, in front of the bar.
        show: whether there is a bar. Without a terminal there is none.
    """
    documents = list(documents)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(description, total=sum(document.size_bytes for document in documents))

        def followed(document: Document) -> Iterator[str]:
            for piece in document.pieces:
                yield piece
                bar.advance(task, len(piece.encode("utf-8", "replace")))

        for document in documents:
            yield Document(document.name, followed(document), document.size_bytes)
