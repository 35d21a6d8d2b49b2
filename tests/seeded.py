"""Property tests whose cases are seeds."""

from __future__ import annotations

from hypothesis import Phase, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2**32)  # a case is its seed: there is nothing to shrink
seeded = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
