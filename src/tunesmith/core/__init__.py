"""The five nouns of a run, and the law of each. Everything else in the package is an instance of one of them.

    Network    what is tuned          a published Transformer, its class untouched, and named heads
    Method     what may move          a predicate over parameter names and, for some, modules it injects      -> Delta
    Objective  what is better         read(net, batch) -> signals; score(signals, batch) -> sums over units
    Source     what arrives, when     net -> iterator of batches, lazy
    Update     how it moves           one step's batches -> record

A `Run` is these five side by side, and `engine.fit` is the only loop. Imports torch and nothing else of ours but the errors.

Shapes: B rows, N tokens of all rows laid end to end, D width, C classes, V vocabulary, M labelled positions.
"""

from __future__ import annotations

from .data import Batch, Ragged, under
from .method import Delta, Method
from .network import Anatomy, Buckets, Graft, Heard, Insert, Network, Slot
from .run import Counts, Listener, Objective, Remembering, Run, Signals, Source, Stage, Terms, Update

__all__ = [
    "Anatomy",
    "Batch",
    "Buckets",
    "Counts",
    "Delta",
    "Graft",
    "Heard",
    "Insert",
    "Listener",
    "Method",
    "Network",
    "Objective",
    "Ragged",
    "Remembering",
    "Run",
    "Signals",
    "Slot",
    "Source",
    "Stage",
    "Terms",
    "Update",
    "under",
]
