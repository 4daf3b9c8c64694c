"""Imported last by the server of `tests.forked`: the garbage collector leaves alone what has been imported before.

It would look through all of that in every fork, and copy its memory by doing so: a third of what a small run costs.
"""

import gc

gc.collect()
gc.freeze()
