# SPDX-License-Identifier: Apache-2.0
"""`lilliput formats`: the names that --to, --format and --formats take."""

from __future__ import annotations

from lilliput.cli import options
from lilliput.cli.output import print_json, print_table, tell


def command(json: options.Json = False) -> None:
    """List presets, number formats and endings of outputs.

    They are the names that options take.
    """
    from lilliput.containers import CONTAINERS, FOLDERS
    from lilliput.formats import FORMATS
    from lilliput.recipes.recipe import find_recipe, preset_names

    presets = [(name, " ".join(find_recipe(name).description.split())) for name in preset_names()]
    containers = [(container.suffix, container.name) for container in (*CONTAINERS, *FOLDERS)]
    if json:
        print_json(
            {
                "presets": [{"name": name, "description": words} for name, words in presets],
                "formats": [
                    {
                        "name": item.name.upper(),
                        "bits_per_weight": item.bits_per_weight,
                        "weights_per_block": item.block_size,
                        "can_be_written": item.can_encode,
                    }
                    for item in FORMATS.values()
                ],
                "containers": [{"ending": suffix, "name": name} for suffix, name in containers],
            }
        )
        return
    print_table("presets, for --to", ("preset", "what it is"), presets, is_prose=True)
    rows = [
        (item.name.upper(), f"{item.bits_per_weight:.4g}", str(item.block_size), "" if item.can_encode else "read only")
        for item in FORMATS.values()
    ]
    headings = ("format", "bits per weight", "weights per block", "")
    print_table("\nnumber formats, for --to, --format, --formats and recipes", headings, rows, numeric=(1, 2))
    print_table("\nendings of outputs, for -o", ("ending", "container"), containers)
    tell("\nintegers, floats and palettes of other widths and group sizes are spelled alike: docs/formats.md")
