"""What a run takes before it is run: operations, time on several cards, disk and money.

- `shape`: the sizes of a model, read from its files without its weights
- `sizes`: how many examples there are, and how many tokens they have
- `work`: the operations, decode steps and bytes of each step of a plan
- `cards`, `rates`: accelerators by their data sheets; how fast they work, and whether that was measured
- `trial`, `random_model`: how fast this machine works, measured in half a minute
- `estimate`: the steps that are missing, with their time and their bytes
"""
