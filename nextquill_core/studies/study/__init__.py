"""A study: five questions about the method, answered by many ordinary runs and written down as one page.

configs/studies/X.yaml ──▶ cells on val ──▶ choices ──▶ cells on test ──▶ results.json ──▶ RESULTS.md and figures

A cell is a configuration: named overrides on the study's base, with one seed and one split. The pipeline runs it, so
its artifacts are shared with all other runs. Choices read val alone.
"""
