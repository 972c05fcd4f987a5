"""Score zero-shot CLIP on a prepared data set.

    clipcovid zeroshot --data data/phantom --clip.model tiny --clip.pretrained none
    clipcovid zeroshot --data data/quex --clip.model ViT-B-32 --clip.pretrained openai --prompts ensemble
    clipcovid zeroshot --data data/quex --prompts my-prompts.yaml --split val

Prompts and cached embeddings give predictions, their scores, and a run in MLflow. What is not embedded yet is embedded
first.
"""

from clipcovid.inference.zeroshot import ZeroshotConfig, zeroshot
from clipcovid.workflows.report import report_run


def main(config: ZeroshotConfig) -> None:
    """Classify, print the scores, show the run in MLflow."""
    result = zeroshot(config)
    if result.scores is None:
        print("The encoder learned from all of these images, by their pixels: predictions are written, but not scored.")
    report_run(result.run, config, manifest=result.manifest, splits=(config.split,), scores=result.scores)
