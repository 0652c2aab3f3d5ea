"""The protocols that techniques implement: one small class in one file behind one of these.

One file holds the protocols of one family. The engine knows these protocols and never a technique
by name. Only what the present engine uses is fixed here; a seam gains a method when its first
technique needs one.
"""

from ockham.core.arrays import (
    Array,
    Floats,
    Ints,
    Longs,
)
from ockham.core.seams.adapter import (
    Adapter,
    AdapterDtype,
    FoundAdapter,
    LowRank,
    MatrixPart,
)
from ockham.core.seams.approximate_reuse import (
    ApproximateReuse,
    Given,
    Splice,
)
from ockham.core.seams.drafting import (
    Constraint,
    Draft,
    Drafter,
    DraftStream,
    Noise,
    Wish,
)
from ockham.core.seams.gate import (
    Gate,
    GatedModel,
    SequenceGate,
)
from ockham.core.seams.keep import (
    Keep,
    Keeping,
    KeptText,
)
from ockham.core.seams.models import (
    Foreseen,
    Likely,
    LoadSmall,
    OwnModel,
    Rows,
    SmallModel,
    Target,
)
from ockham.core.seams.observe import (
    NOTHING,
    Observer,
    OwnRows,
    Seen,
    Wants,
)
from ockham.core.seams.pages import (
    PagePool,
)
from ockham.core.seams.pattern import (
    AttentionGroup,
    Pattern,
    SequencePattern,
)
from ockham.core.seams.reuse import (
    EXPECTED,
    GONE,
    NOTHING_KEPT,
    PLAIN,
    SPENT,
    CachedPrefix,
    NodeFacts,
    Reuse,
)
from ockham.core.seams.schedule import (
    Candidate,
    Policy,
)
from ockham.core.seams.search import (
    Action,
    Blend,
    Branch,
    Continue,
    Drop,
    Finish,
    Fork,
    Hold,
    Problem,
    Say,
    Search,
    SearchState,
)
from ockham.core.seams.tiers import (
    Fetch,
    Tiers,
)
from ockham.core.seams.weights import (
    Arithmetic,
    BlockFormat,
    Field,
    FillableLinear,
    FittedFormat,
    Format,
    Layout,
    Linear,
    MixedFormat,
    QuantisedFormat,
    Role,
    Values,
)

__all__ = [
    "Action",
    "Adapter",
    "AdapterDtype",
    "ApproximateReuse",
    "Arithmetic",
    "Array",
    "AttentionGroup",
    "Blend",
    "BlockFormat",
    "Branch",
    "CachedPrefix",
    "Candidate",
    "Constraint",
    "Continue",
    "Draft",
    "DraftStream",
    "Drafter",
    "Drop",
    "EXPECTED",
    "Fetch",
    "Field",
    "FillableLinear",
    "Finish",
    "FittedFormat",
    "Floats",
    "Foreseen",
    "Fork",
    "Format",
    "FoundAdapter",
    "GONE",
    "Gate",
    "GatedModel",
    "Given",
    "Hold",
    "Ints",
    "Keep",
    "Keeping",
    "KeptText",
    "Layout",
    "Likely",
    "Linear",
    "LoadSmall",
    "Longs",
    "LowRank",
    "MatrixPart",
    "MixedFormat",
    "NOTHING",
    "NOTHING_KEPT",
    "NodeFacts",
    "Noise",
    "Observer",
    "OwnModel",
    "OwnRows",
    "PLAIN",
    "PagePool",
    "Pattern",
    "Policy",
    "Problem",
    "QuantisedFormat",
    "Reuse",
    "Role",
    "Rows",
    "SPENT",
    "Say",
    "Search",
    "SearchState",
    "Seen",
    "SequencePattern",
    "SmallModel",
    "SequenceGate",
    "Splice",
    "Target",
    "Tiers",
    "Values",
    "Wants",
    "Wish",
]
