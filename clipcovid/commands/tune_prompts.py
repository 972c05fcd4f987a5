"""Search for the prompts with which CLIP classifies best.

    clipcovid tune-prompts --data data/quex --clip.model ViT-B-32 --clip.pretrained openai
    clipcovid tune-prompts --data data/quex --search evolve --candidates 20000 --objective macro_auroc
    clipcovid tune-prompts --data data/quex --space my-words.yaml --search exhaustive

Scores candidates on the validation split's cached embeddings, without training. A candidate is an ensemble of templates
with a choice of phrases for each class. No image is encoded twice, and the test split is looked at once, by the winner.
Killed and run again, it goes on with the trials that are missing.
"""

from clipcovid.workflows.sweep_prompts import PromptSweepConfig, sweep_prompts


def main(config: PromptSweepConfig) -> None:
    """Search, and report the best prompts."""
    sweep_prompts(config)
