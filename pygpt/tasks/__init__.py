"""Tasks: files of examples in JSON Lines, what a model reads of them and what it should write."""
