"""Reviews for one person: look up the history, build the prompt of the training, generate, and explain the text."""
