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

PRINTED_EXAMPLES = 5  # of captions that are printed


def main(config: GenerateConfig) -> None:
    """Write captions, then print some of them, how many name the class, and where all of them are."""
    result, console = generate(config), Console()
    if not result.created:
        print("All of it was captioned before.")
    for row in result.table.head(PRINTED_EXAMPLES).to_dict("records"):
        console.print(f"{escape(str(row['image_id']))}: {escape(str(row['caption']))}")
    leaks = ", ".join(f"{count} of {name}" for name, count in result.leaks.items())
    print(f"Generated captions that name their class already: {leaks}.")
    print(f"Captions: {result.path}")
    console.print(f"[dim]{RESEARCH_ONLY}[/]")
