"""The fork server imports this last: forked processes do not look through what it has imported when
they collect garbage. That would take each of them 130 ms of CPU and a copy of 40 MB."""

import gc

gc.collect()
gc.freeze()
