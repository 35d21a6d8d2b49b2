"""`fedfault contract FILE`: which rules of their kind the components of a plug-in keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedfault.config.files import parse_setting, spell_key
from fedfault.errors import UserError, suggest
from fedfault.options import check_options, list_options
from fedfault.registry import activate, list_plugins, list_registered
from fedfault.saying import Say
from fedfault.testing import try_rules


def check_plugin(source: str, settings: Sequence[str], say: Say) -> int:
    """Check every component of a plug-in against the contract of its kind, a line for each rule; returns the exit status.

    settings: options as `key=value`, for the components that take them. Raises `UserError` for a plug-in that cannot be
    imported, for options that none of its components takes, and for values that they do not allow.
    """
    activate([source])
    found = list_registered(next(p for p in list_plugins() if not p.package))
    options = {spell_key(key): entry.value for text in settings for key, entry in parse_setting(text).items()}
    takes = [key for registered in found.values() for key in list_options(registered.builder)]
    for key in options:
        if key not in takes:
            raise UserError(f"no component of {source} has an option {key!r}{suggest(key, takes)}")
    for (kind, name), (builder, _) in found.items():
        if own := _choose_options(builder, options):
            check_options(kind, name, builder, own)
    broken = [_check_component(kind, name, builder, options, say) for (kind, name), (builder, _) in found.items()]
    return int(any(broken))


def _check_component(
    kind: str, name: str, builder: Callable[..., object], options: Mapping[str, object], say: Say
) -> int:
    """Say how a component does by each rule; returns how many it breaks."""
    say(f"{kind} {name}")
    broken = total = 0
    for rule, told in try_rules(kind, builder, **_choose_options(builder, options)):
        total, broken = total + 1, broken + bool(told)
        say(f"  {'BROKEN' if told else 'holds '}  {rule.sentence}")
        if told:
            say("\n".join(f"          {line.strip()}" for line in told.splitlines()[1:]))
    say(f"  it keeps all {total} rules" if not broken else f"  it breaks {broken} of {total} rules")
    return broken


def _choose_options(builder: Callable[..., object], options: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in options.items() if key in list_options(builder)}
