"""semiseg methods: what can be trained, and the options of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # the registry imports every method, and torch with them
    from ..options import Options


def methods(name: Annotated[str, typer.Argument(help="A method, a plug-in or a part; none: all.")] = "") -> None:
    """List methods and plug-ins with their papers, or the options of one with defaults, meaning and equation."""
    from .. import registry
    from ..options import SHARED, one_of

    if not name:
        typer.echo("\n".join(_all()))
        return
    one_of("method, plug-in or part", name, [*registry.methods(), *registry.plug_ins(), *registry.parts()])
    described: Any = registry.methods().get(name) or registry.plug_ins().get(name)
    if described is None:
        typer.echo(_options(registry.parts()[name]))
        return
    typer.secho(f"{described.title}: {described.paper or 'labels alone'}", bold=True)
    typer.echo(f"chapter: {described.chapter}; variants: {', '.join(['default', *described.readings])}\n")
    for kind in filter(None, (described.options, getattr(described, "companion", None))):
        typer.echo(_options(kind))
    if name in registry.methods():
        typer.echo(f"shared parts: {', '.join(SHARED)}; of consistency it reads {', '.join(described.reads)}")


def _all() -> Iterator[str]:
    from .. import registry

    for heading, found in (("methods", registry.methods()), ("plug-ins", registry.plug_ins())):
        yield typer.style(heading, bold=True)
        for name, each in found.items():
            yield f"  {name:18} {each.title:18} {each.paper}"
    yield "\nsemiseg methods NAME lists the options of one; semiseg train --set part.option=value changes them"


def _options(kind: type[Options]) -> str:
    """A paragraph per option: name, default, symbol, meaning, place in the paper."""
    rows = [f"{(kind.__doc__ or '').strip().splitlines()[0]}"]
    for o in kind.described():
        default = "none" if o.default is None else o.default
        unit = f" {o.unit}" if o.unit else ""
        rows.append(f"  {kind.part}.{o.name} = {default}{unit}" + (f"    {o.symbol}" if o.symbol else ""))
        rows.append(f"      {o.meaning}" + (f" ({o.equation})" if o.equation else ""))
    return "\n".join(rows) + "\n"
