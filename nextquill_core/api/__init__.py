"""The front for notebooks and other programs, reached by `import nextquill_core as nq`.

- `opened`: a run's artifacts as tables of several libraries, its examples with texts, its writers
- `scoring`: effects and weights of one review under any model
"""
