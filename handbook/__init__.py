"""The documentation as a site that works from disk: `python -m handbook`, or `make docs`.

The pages are the files that the repository shows: README, `docs`, and the READMEs of `bench` and of
the examples. What follows from code (each command with its options, metrics, messages) is written
when the site is built, and never kept.
"""
