"""What a configuration is refused with."""

from __future__ import annotations

import pytest

from fedfault.config import load
from fedfault.errors import UserError


def refused(*arguments) -> str:
    """The message with which `load` refuses these arguments."""
    with pytest.raises(UserError) as e:
        load(*arguments)
    return str(e.value)
