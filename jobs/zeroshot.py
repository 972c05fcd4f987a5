"""Score zero-shot CLIP on a prepared data set: prompts × cached embeddings → predictions → metrics, in MLflow.

    python jobs/zeroshot.py --data data/phantom --clip.model tiny --clip.pretrained none
    python jobs/zeroshot.py --data data/quex --clip.model ViT-B-32 --clip.pretrained openai --prompts ensemble
    python jobs/zeroshot.py --data data/quex --prompts my-prompts.yaml --split val

What is not embedded yet is embedded first.
"""

from rich.console import Console

from clipcovid.config import run_job
from clipcovid.data.manifest import read_manifest
from clipcovid.evaluate.tables import print_scores
from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.tracking import track, ui_command


def main(config: ZeroshotConfig) -> None:
    """Classify, print the scores, show the run in MLflow."""
    scored = zeroshot(config)
    print_scores(scored.scores, Console())
    print(f"Run: {scored.run.folder}")
    manifest = read_manifest(config.data)
    hashes = {"manifest": manifest.content_hash, "split": manifest.split_hash, "dataset": manifest.dataset}
    if track(scored.run, config, tags=hashes):
        print(f"MLflow: {ui_command(config.out)}")


if __name__ == "__main__":
    run_job(ZeroshotConfig, main, __doc__)
