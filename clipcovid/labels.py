"""Classes and prompts: the words that zero-shot classification compares images with."""

import dataclasses
import json
from pathlib import Path

import yaml

from clipcovid.config import UserError

CLASSES = ("COVID-19", "Non-COVID", "Normal")
PHRASES = {
    "COVID-19": ("COVID-19 pneumonia",),
    "Non-COVID": ("viral or bacterial pneumonia",),
    "Normal": ("normal lungs",),
}
TEMPLATE = "a chest X-ray of {}"
ENSEMBLE = (
    "a chest X-ray of {}",
    "a chest radiograph showing {}",
    "a frontal chest X-ray with {}",
    "an X-ray image of the lungs with {}",
    "a PA chest radiograph of a patient with {}",
    "a medical image of {}",
    "findings consistent with {}",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """The texts that stand for each class."""

    prompts: str = "single"
    """single: one text a class. ensemble: the mean over our templates. Or a YAML or JSON file: {templates: […], classes:
    {name: [phrase, …]}} or {name: [whole prompt, …]}."""
    template: str = TEMPLATE
    """The single template; {} stands for the class's phrase."""

    def __post_init__(self) -> None:
        _check_template(self.template, "--template")


def build_prompts(config: PromptsConfig, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Class → its prompts, every class at least one. A file that can't be read or lacks a class is a `UserError`."""
    if config.prompts == "single":
        return _fill((config.template,), {name: PHRASES.get(name, (name,)) for name in classes})
    if config.prompts == "ensemble":
        return _fill(ENSEMBLE, {name: PHRASES.get(name, (name,)) for name in classes})
    return read_prompts(Path(config.prompts), classes)


def read_prompts(path: Path, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Class → prompts from a YAML or JSON file, in either form that `PromptsConfig.prompts` names."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--prompts {path}: no such prompt file ({error.strerror}); or use single or ensemble."
        ) from None
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--prompts {path} is not valid {'JSON' if path.suffix == '.json' else 'YAML'} ({error})."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"--prompts {path} must hold a mapping of class names to texts.")
    phrases = content.get("classes") if "templates" in content or "classes" in content else content
    phrases = phrases if phrases is not None else {name: PHRASES.get(name, (name,)) for name in classes}
    if missing := [name for name in classes if not phrases.get(name)]:
        raise UserError(
            f"--prompts {path} has no text for the class {missing[0]!r}; it has: {', '.join(map(str, phrases))}."
        )
    if "templates" not in content:
        return {name: list(_texts(phrases[name], path)) for name in classes}
    templates = _texts(content["templates"], path)
    for template in templates:
        _check_template(template, f"--prompts {path}")
    return _fill(templates, {name: _texts(phrases[name], path) for name in classes})


def _fill(templates: tuple[str, ...], phrases: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: [t.replace("{}", phrase) for t in templates for phrase in texts] for name, texts in phrases.items()}


def _check_template(template: str, where: str) -> None:
    if "{}" not in template:
        raise UserError(f"{where}: the template {template!r} has no {{}} for the class's phrase.")


def _texts(value: object, path: Path) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f"--prompts {path}: {value!r} is not a text or a list of texts.")
    return tuple(texts)
