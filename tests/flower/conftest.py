"""A deployment on loopback, for the tests of one."""

from __future__ import annotations

import pytest


@pytest.fixture
def deployed(tmp_path, request):
    """A SuperLink and the folders of some sites: two, or as many as the test says."""
    from deployment import Deployment

    made = Deployment(tmp_path, getattr(request, "param", 2))
    try:
        made.superlink()
        yield made
    finally:
        made.close()
