"""Pages that MkDocs builds: the flags of every command, the package's names, and the root's CONTRIBUTING and CHANGELOG."""

import functools
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
INDEX = "reference/flags/index.md"
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import flag_pages  # noqa: E402 (these are beside this file, where MkDocs does not look)
import python_page  # noqa: E402


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages where the navigation names their index."""
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    listing = next(pages for entry in reference for pages in entry.values() if INDEX in pages)
    names = sorted(name for name in generated_pages() if Path(name).parent == Path(INDEX).parent and name != INDEX)
    listing += [{Path(name).stem: name} for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    for name, text in generated_pages().items():
        files.append(File.generated(config, name, content=text))
    return files


@functools.cache
def generated_pages() -> dict[str, str]:
    """Path below docs/ → Markdown."""
    texts = {f"reference/flags/{name}": text for name, text in flag_pages.pages().items()}
    texts["reference/python.md"] = python_page.page()
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        texts[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    return texts
