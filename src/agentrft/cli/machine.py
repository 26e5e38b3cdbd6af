"""Commands on this machine: what its sandbox holds, and which packages graders may use."""

from typing import Annotated

import typer

from agentrft.cli.terminal import HomeOption, console, open_home, print_table

app = typer.Typer()
images_app = typer.Typer(help="Package sets for Python graders.", no_args_is_help=True)

ImageArgument = Annotated[str, typer.Argument(help="The `image_tag` of graders, e.g. 2025-05-08.")]


@app.command()
def doctor(home: HomeOption = None) -> None:
    """Show which layers of the sandbox hold on this machine, and what to do about the others."""
    from agentrft.sandbox.images import installed
    from agentrft.sandbox.levels import Level, survey

    found = survey()
    rows = [(layer.name, "yes" if layer.holds else "NO", layer.detail) for layer in found.layers]
    print_table(("layer", "holds", "how, or why not"), rows)
    says = {
        Level.L2: "L2: code that nobody trusts is contained, and can see nothing of this machine",
        Level.L1: "L1: contained, but weaker than L2; docs/sandbox.md lists what it does not stop",
        None: "none: Python graders are refused on this machine",
    }
    tags = ", ".join(installed(open_home(home).images)) or "none; `agentrft images install TAG`"
    print(f"\nsandbox level {says[found.level]}\nimages: {tags}")
    if found.level is None:
        raise typer.Exit(1)


@images_app.command("list")
def images_list(home: HomeOption = None) -> None:
    """List package sets by `image_tag`, and whether they are installed."""
    from agentrft.sandbox.images import PACKAGE_SETS, installed, missing_nltk_data

    images = open_home(home).images
    here = installed(images)
    print_table(
        ("image_tag", "installed", "NLTK data that is missing"),
        [
            (
                tag,
                "yes" if tag in here else "no",
                ", ".join(missing_nltk_data(tag, images)) or "-" if tag in here else "",
            )
            for tag in sorted({*PACKAGE_SETS, *here})
        ],
    )


@images_app.command("install")
def images_install(tag: ImageArgument, home: HomeOption = None) -> None:
    """Fetch a package set; hundreds of megabytes, at exactly the versions of the hosted service."""
    from agentrft.core.errors import ConfigError
    from agentrft.sandbox.images import PACKAGE_SETS, install, missing_nltk_data

    if tag not in PACKAGE_SETS:
        raise ConfigError(f"no package set is named {tag!r}; known: {', '.join(PACKAGE_SETS)}")
    images = open_home(home).images
    with console().status(f"installing {len(PACKAGE_SETS[tag])} packages"):
        folder = install(tag, images, PACKAGE_SETS[tag])
    print(folder)
    if missing := missing_nltk_data(tag, images):
        print(f"NLTK data is not on the package index and missing: {', '.join(missing)}")
        print("docs/sandbox.md says where to put it")
