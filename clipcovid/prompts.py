"""Classes and prompts: the words that zero-shot classification compares images with."""

import dataclasses
from pathlib import Path

from clipcovid.config import UserError
from clipcovid.io.mappings import read_mapping
from clipcovid.io.tables import is_missing

CLASSES = ("COVID-19", "Non-COVID", "Normal")
PHRASES = {
    "COVID-19": ("COVID-19 pneumonia",),
    "Non-COVID": ("viral or bacterial pneumonia",),
    "Normal": ("normal lungs",),
}
TEMPLATE = "a chest X-ray of {}"
ENSEMBLE_TEMPLATES = (
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
        return _fill(ENSEMBLE_TEMPLATES, {name: PHRASES.get(name, (name,)) for name in classes})
    return read_prompts(Path(config.prompts), classes)


def read_prompts(path: Path, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Class → prompts from a YAML or JSON file, in either form that `PromptsConfig.prompts` names."""
    if not path.exists():
        raise UserError(f"--prompts {path}: there is no such prompt file; or use single or ensemble.")
    content = read_mapping(path, "--prompts")
    phrases = content.get("classes") if "templates" in content or "classes" in content else content
    phrases = phrases or {name: PHRASES.get(name, (name,)) for name in classes}
    if not isinstance(phrases, dict):
        raise UserError(f"--prompts {path}: classes must be a mapping of class names to texts.")
    if missing := [name for name in classes if not phrases.get(name)]:
        raise UserError(
            f"--prompts {path} has no text for the class {missing[0]!r}; it has: {', '.join(map(str, phrases))}."
        )
    if "templates" not in content:
        return {name: list(texts_of(phrases[name], path)) for name in classes}
    templates = texts_of(content["templates"], path)
    for template in templates:
        _check_template(template, f"--prompts {path}")
    return _fill(templates, {name: texts_of(phrases[name], path) for name in classes})


def _fill(templates: tuple[str, ...], phrases: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: [t.replace("{}", phrase) for t in templates for phrase in texts] for name, texts in phrases.items()}


def _check_template(template: str, where: str) -> None:
    if "{}" not in template:
        raise UserError(f"{where}: the template {template!r} has no {{}} for the class's phrase.")


def texts_of(value: object, path: Path, flag: str = "--prompts") -> tuple[str, ...]:
    """A text, or a list of such, of a file; anything else is a `UserError` that names the flag."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and not is_missing(text) and text != "~" for text in texts):
        raise UserError(f"{flag} {path}: {value!r} is not a text or a list of texts.")
    return tuple(texts)
