"""What people read of an evaluation; no number of its tables is made here.

- `page`: the content of the report, from the artifacts of a run
- `example`: one review: past reviews, effects and the texts of the methods
- `against_truth`: estimated against exact effects in a synthetic world
- `paper_pictures`: the paper's figures
"""
