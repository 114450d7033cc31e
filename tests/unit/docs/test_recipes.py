"""The page of recipes repeats the header of each shipped YAML."""

import re

from docs.generators.recipes import CONFIGS, read_header, recipes

PAGE = recipes()


def test_every_shipped_yaml_has_a_row_and_a_section():
    for file in CONFIGS.glob("*.yaml"):
        assert f"| [`{file.name}`](#{file.stem}yaml) |" in PAGE
        assert f"\n## `{file.name}`\n" in PAGE
        assert f"tristage run configs/{file.name}" in PAGE


def test_a_header_is_read(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "# What it\n# is for.\n#\n# More.\n#\n# Hardware: a CPU.\n"
        "# Run:      make x   or, by hand: tristage run mine.yaml\n"
        "# Override: add key=value, e.g. tristage run \\\n#             a.b=1\nname: mine # not this\n"
    )
    header = read_header(file)
    assert header.about == ["What it is for.", "More."]
    assert header.fields == {
        "Hardware": "a CPU.",
        "Run": "make x   or, by hand: tristage run mine.yaml",
        "Override": "add key=value, e.g. tristage run \\\n  a.b=1",
    }


def test_two_ways_to_run_are_two_commands():
    assert "```sh\nmake demo\ntristage run configs/demo.yaml\n```" in PAGE


def test_every_recipe_has_an_override_to_copy():
    examples = re.findall(r"^\*\*Override:\*\* .+\n\n```sh\n(.+)$", PAGE, re.MULTILINE)
    assert len(examples) == len(list(CONFIGS.glob("*.yaml")))
    assert all(example.startswith("tristage run ") for example in examples)
