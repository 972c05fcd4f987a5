"""Embed a prepared data set with CLIP, over all the workers that the cluster has room for.

    python jobs/embed.py --data data/phantom --clip.model tiny --clip.pretrained none
    python jobs/embed.py --data data/quex --clip.model ViT-B-32 --clip.pretrained openai

Run again, it goes on where it stopped, or says that it is done.
"""

from clipcovid.config import run_job
from clipcovid.inference.embed import EmbedConfig, embed


def main(config: EmbedConfig) -> None:
    """Embed, then say where the embeddings are."""
    embeddings = embed(config)
    done = "Embedded" if embeddings.fresh else "Already embedded: nothing was left to do"
    print(f"{done}: {embeddings.folder}")


if __name__ == "__main__":
    run_job(EmbedConfig, main, __doc__)
