"""Embed a prepared data set with CLIP.

    clipcovid embed --data data/phantom --clip.model tiny --clip.pretrained none
    clipcovid embed --data data/quex --clip.model ViT-B-32 --clip.pretrained openai

Uses all the workers that the cluster has room for. Run again, it goes on where it stopped, or says that it is done.
"""

from clipcovid.data.manifest import read_manifest
from clipcovid.inference.embed import EmbedConfig, embed, is_training_image


def main(config: EmbedConfig) -> None:
    """Embed the data set, and print the folder of the embeddings."""
    manifest = read_manifest(config.data)
    embeddings = embed(config, manifest=manifest)
    done = "Embedded" if embeddings.created else "Already embedded: nothing was left to do"
    print(f"{done}: {embeddings.folder}")
    learned, assumed = is_training_image(config.clip, manifest)
    if assumed or learned.any():
        overlap = f"the encoder learned from {learned.sum()} of these {len(manifest.table)} images, by their pixels."
        print(f"note: {assumed or overlap}")
