"""Score zero-shot CLIP on a prepared data set: prompts × cached embeddings → predictions → metrics, in MLflow.

    python jobs/zeroshot.py --data data/phantom --clip.model tiny --clip.pretrained none
    python jobs/zeroshot.py --data data/quex --clip.model ViT-B-32 --clip.pretrained openai --prompts ensemble
    python jobs/zeroshot.py --data data/quex --prompts my-prompts.yaml --split val

What is not embedded yet is embedded first.
"""

from clipcovid.config import run_job
from clipcovid.data.manifest import read_manifest
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.workflows.train import show, track_run


def main(config: ZeroshotConfig) -> None:
    """Classify, print the scores, show the run in MLflow."""
    scored = zeroshot(config)
    manifest = read_manifest(config.data)
    if scored.scores is None:
        print("The encoder learned from all of these images, by their pixels: predictions are written, but not scored.")
        track_run(scored.run, config, manifest)
    else:
        show(scored.run, scored.scores, config, manifest)


if __name__ == "__main__":
    run_job(ZeroshotConfig, main, __doc__)
