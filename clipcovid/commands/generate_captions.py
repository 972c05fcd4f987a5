"""Write captions of a data set with BLIP, to train CLIP on.

    clipcovid generate-captions --data data/quex
    clipcovid generate-captions --data data/quex --label append --prompt "a chest x-ray of"
    clipcovid finetune --data data/quex --captions data/quex/captions/train-….parquet

Only the train split is captioned unless told otherwise. Killed and run again, it goes on where it was.
"""

from rich.console import Console
from rich.markup import escape

from clipcovid.config import RESEARCH_ONLY
from clipcovid.inference.generate import GenerateConfig, generate

SHOWN = 5


def main(config: GenerateConfig) -> None:
    """Caption, then say where the captions are, how they read, and which of them name the class."""
    made, console = generate(config), Console()
    if not made.created:
        print("All of it was captioned before.")
    for row in made.table.head(SHOWN).to_dict("records"):
        console.print(f"{escape(str(row['image_id']))}: {escape(str(row['caption']))}")
    named = ", ".join(f"{count} of {name}" for name, count in made.leaks.items())
    print(f"Generated captions that name their class already: {named}.")
    print(f"Captions: {made.path}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")
