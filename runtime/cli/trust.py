"""`llmos trust`"""

from __future__ import annotations

import click


@click.group(name="trust")
def command() -> None:
    """Manage the keys whose artifacts may run here.

    An artifact holds native code, so it runs only when it is signed with your own key or with one that you trust.
    """


@command.command()
@click.argument("key")
@click.option("--name", help="What to call the key; its first digits by default.")
def add(key: str, name: str | None) -> None:
    """Trust KEY: 64 hex digits, or a PEM file with a public key."""
    from llmos.runtime.artifact.signature import add_trusted

    added = add_trusted(key, name)
    click.echo(f"trusted: {added.name} {added.public_hex}")


@command.command(name="list")
def list_keys() -> None:
    """List the trusted keys."""
    from llmos.runtime.artifact.signature import trusted_keys

    keys = trusted_keys()
    if not keys:
        click.echo("no keys yet: 'llmos compile' makes your own on first use")
    for key in keys:
        click.echo(f"{key.public_hex}  {key.name}")


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Stop trusting the key called NAME, or with these hex digits."""
    from llmos.runtime.artifact.signature import remove_trusted

    removed = remove_trusted(name)
    click.echo(f"removed: {removed.name} {removed.public_hex}")
