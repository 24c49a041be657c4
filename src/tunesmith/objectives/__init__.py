"""What is better. One file a family; this table is the recipe's vocabulary."""

from __future__ import annotations

from ..core import Objective
from .cloze import Cloze
from .contrast import Contrast
from .distil import Distil
from .prefer import Prefer
from .reinforce import Reinforce
from .setfit import SetFit
from .supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "distil": Distil,
    "contrast": Contrast,
    "prefer": Prefer,
    "reinforce": Reinforce,
    "setfit": SetFit,
    "cloze": Cloze,
}
