"""What can still happen to one subject of a running system: computed by its domains, done never.

`present` puts what the history tells of a subject into a model of `saga.verify`, `ends` explores
that and says which ends are left, `whatif` takes a given way through it.
"""
