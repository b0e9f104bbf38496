"""Feature extraction: where a model is cut, what it will cost and save, who runs the trunk, and what is kept.

Rooms, in the order in which they use each other: `flatten` (one graph), `cut` (trunk and tail), `engines` (who runs the
trunk), `views` (augmented versions), `plan` (whether and how), `reading` (images in order), `store` (what is kept),
`extract` (one pass), `session` (training on it).
"""

from kerastl.features.cut import Cut, find_cuts
from kerastl.features.plan import CacheOptions, CachePlan, choose_cuts, make_plan, options_of, plan_cache
from kerastl.features.reading import Rows, SourceRows, rows_of
from kerastl.features.session import Session

__all__ = [
    "CacheOptions",
    "CachePlan",
    "Cut",
    "Rows",
    "Session",
    "SourceRows",
    "choose_cuts",
    "find_cuts",
    "make_plan",
    "options_of",
    "plan_cache",
    "rows_of",
]
