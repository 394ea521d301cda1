"""How each step of a plan becomes an artifact. No Prefect here: the tasks call these, and so can a notebook."""
