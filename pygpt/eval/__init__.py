"""How good a model is: at its task, at a text, at tasks it is shown a few examples of."""
