"""Study files: what they may say, the commands that they become, the schema of them, and the estimate of a plan."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from covidx_lists import LISTS, ROWS, covidx

from clipcovid.cli import from_cli
from clipcovid.commands import load_command, study
from clipcovid.commands.demo import DEMO, demo_study
from clipcovid.config import UserError
from clipcovid.study.estimate import Estimates
from clipcovid.study.file import SET_BY_STUDY, config_of, method_commands, parse_study, read_study
from clipcovid.study.plan import plan_study
from clipcovid.study.schema import study_schema
from clipcovid.study.settings import build_config, command_args, convert, read_settings, settings_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "study.md"
EXAMPLES = [DEMO.read_text(encoding="utf-8")]
EXAMPLES += re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
DATA = "{source: phantom, out: data/phantom}"
DEMO_COMMANDS = """
prepare --source phantom --out data/phantom --size 128
segment --data data/phantom --target both --name segment --weights none --optim.batch-size 8 --optim.lr 2e-3 \
--optim.keep last --optim.epochs 8 --compute.workers 0
embed --data data/phantom --clip.model tiny --clip.pretrained none
zeroshot --data data/phantom --clip.model tiny --clip.pretrained none --prompts ensemble --name zeroshot
finetune --data data/phantom --clip.model tiny --clip.pretrained none --name finetune --optim.batch-size 32 --optim.lr 2e-4 \
{off} --optim.epochs 12 --compute.workers 2
finetune --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --method lora --name lora \
--optim.batch-size 32 --optim.lr 2e-4 {off} --optim.epochs 2 --compute.workers 0
probe --data data/phantom --clip.model tiny --clip.pretrained none --name probe --compute.workers 0
probe --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --name probe-finetuned --compute.workers 0
coop --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --name coop --compute.workers 0
tip-adapter --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --name tip-adapter --compute.workers 0
tune-prompts --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --name prompts --candidates 1000 \
--compute.workers 0
cnn --data data/phantom --image-size 64 --name cnn --weights none --optim.batch-size 32 --optim.lr 2e-3 --optim.keep last \
--optim.epochs 15 --compute.workers 0
hybrid --data data/phantom --clip.model tiny --clip.pretrained outputs/finetune --name hybrid --weights none \
--optim.batch-size 32 --optim.lr 2e-3 --optim.keep last --optim.epochs 10 --compute.workers 0
compare --name compare
""".replace("{off}", "--augment.rotate 0 --augment.shift 0 --augment.scale 0 --augment.intensity 0 --augment.noise 0")
BLACK_DATA = "apply-masks --data data/phantom --keep lungs-black --out data/phantom-black"
COMPARED = "zeroshot finetune lora probe probe-finetuned coop tip-adapter prompts cnn hybrid"


def study_of(text, **more):
    content = yaml.load(text, Loader=yaml.BaseLoader)
    return parse_study(content | more, "trial")


def steps_of(methods, **more):
    """Name → step of a study with the encoders `a`, of random weights, and `b`."""
    encoders = "{a: {model: tiny, pretrained: none}, b: {}}"
    return {
        step.name: step
        for step in plan_study(study_of(f"data: {DATA}\nencoders: {encoders}\nmethods: {methods}", **more))
    }


def config_of_line(line):
    name, *words = shlex.split(line)
    return from_cli(load_command(name).config, "", words)


@pytest.mark.parametrize("black", [False, True])
def test_the_demo_is_the_commands_that_its_results_were_made_with(black):
    lines = DEMO_COMMANDS.strip().splitlines()
    if black:
        changed = [re.sub(r"(--name [\w-]+|outputs/[\w-]+)", r"\1-black", line) for line in lines[2:]]
        lines = [BLACK_DATA, *(line.replace("data/phantom ", "data/phantom-black ") for line in changed)]
    added = ("zeroshot-val", "audit", "report")
    steps = [step for step in plan_study(demo_study(black)) if step.name not in added]
    assert [step.command for step in steps] == [line.split()[0] for line in lines]
    for step, line in zip(steps, lines, strict=False):
        assert step.config == config_of_line(line), line
        assert config_of_line(shlex.join(step.args)) == step.config
    suffix = "-black" if black else ""
    runs = {name: str(folder) for name, folder in steps[len(lines) - 1].input_folders.items()}
    assert runs == {
        name: f"outputs/{name}{suffix}{'/winner' if name == 'prompts' else ''}" for name in COMPARED.split()
    }


@pytest.mark.parametrize("name", method_commands())
def test_the_words_of_any_settings_are_read_back_as_the_same_config(name):
    """All flags of a method at once, each with a value that is not its default."""
    flags = settings_of(config_of(name))
    values = {"data": Path("data/x")}
    for flag in flags.values():
        if "|" in str(flag.type) and flag.default is None:
            values[flag.name] = convert(flag.type, "3", flag.name)
        elif flag.type is bool and flag.name != "within-lungs":  # needs another target
            values[flag.name] = not flag.default
        elif flag.type is str and flag.name not in ("fold", "template", "caption-template"):
            values[flag.name] = "a name, with 'words'"
    values.pop("shots", None)
    config = build_config(config_of(name), flags, values, name)
    assert from_cli(config_of(name), "", [*command_args(values)]) == config
    assert config != build_config(config_of(name), flags, {"data": Path("data/x")}, name)


def test_settings_are_nested_or_dotted_and_in_the_types_of_the_config():
    flags = settings_of(config_of("cnn"), SET_BY_STUDY)
    content = {"optim": {"lr": "2e-4", "keep": "last"}, "optim.epochs": "3", "tta": "yes", "augment": {"flip": "false"}}
    assert read_settings(flags, content, "cnn") == {
        "optim.lr": 2e-4,
        "optim.keep": "last",
        "optim.epochs": 3,
        "tta": True,
        "augment.flip": False,
    }
    flags = settings_of(config_of("probe"))
    assert read_settings(flags, {"shots": ["1", "16", "all"]}, "probe") == {"shots": ("1", "16", "all")}
    assert read_settings(flags, {"shots": "all"}, "probe") == {"shots": ("all",)}
    prepare = settings_of(config_of("prepare"))
    assert read_settings(prepare, {"classes": ["No", "0"], "size": "64"}, "data") == {
        "classes": ("No", "0"),
        "size": 64,
    }


@pytest.mark.parametrize(
    ("methods", "more", "message"),
    [
        ("{cnn: {optim: {ephocs: 3}}}", {}, r"methods.cnn: there is no setting 'optim.ephocs'; near it: optim.epochs"),
        ("{cnn: {epochs: 3}}", {}, r"there is no setting 'epochs'; near it: optim.epochs"),
        ("{cnn: {optim: {epochs: ten}}}", {}, r"methods.cnn.optim.epochs is 'ten', which is not a whole number"),
        ("{cnn: {optim: {epochs: -1}}}", {}, r"methods.cnn: --optim.epochs -1 must be at least 0"),
        ("{cnn: {optim: {lr: 1, keep: first}}}", {}, r"methods.cnn.optim.keep is 'first': use best, last"),
        ("{cnn: {optim.lr: 1, optim: {lr: 2}}}", {}, r"optim.lr stands twice"),
        ("{cnn: {tta: maybe}}", {}, r"methods.cnn.tta is 'maybe': use true or false"),
        ("{cnn: {arch: [a, b]}}", {}, r"methods.cnn.arch is one value, not \['a', 'b'\]"),
        ("{cnn: {optim: 3}}", {}, r"methods.cnn.optim must be a mapping of names to values, not '3'"),
        ("{cnn: {data: elsewhere}}", {}, r"methods.cnn: data is set by the study"),
        ("{resnet: {arch: resnet50}}", {}, r"methods.resnet: 'resnet' is no method.*say which with command: …"),
        ("{cnn: {command: probe}}", {}, r"this name is another command's than probe: rename it"),
        ("{probe: {encoder: b32}}", {}, r"encoder 'b32' is neither an encoder nor a method above"),
        ("{probe: {encoder: cnn}, cnn: {}}", {}, r"encoder 'cnn' is neither an encoder nor a method above"),
        ("{cnn: {encoder: cnn}}", {}, r"cnn uses no encoder"),
        ("{a/b: {command: cnn}}", {}, r"methods: 'a/b' must be a plain name"),
        ("{compare: {command: cnn}, cnn: {}}", {}, r"Two steps would be called 'compare'"),
        ("{}", {}, r"methods is empty"),
        ("{cnn: {}}", {"metods": {}}, r"there is no setting 'metods'; near it: methods"),
        ("{cnn: {}}", {"data": ""}, r"data: out is missing"),
        ("{cnn: {}}", {"data": "nowhere"}, r"data: nowhere is no prepared folder: say how to prepare it"),
        ("{cnn: {}}", {"data": "nowhere", "classes": ["a", "b"]}, r"data names a prepared folder: leave them out"),
        ("{cnn: {}}", {"data": {"source": "phantom", "out": "d", "sise": "3"}}, r"data: there is no setting 'sise'"),
        ("{cnn: {}}", {"budget": "soon"}, r"budget 'soon' is no time such as 90m or 8h"),
        ("{cnn: {}}", {"run-name": "{study}"}, r"run-name '{study}' must hold {step}"),
        ("{cnn: {}}", {"name": "a/b"}, r"name 'a/b' must be a plain name"),
        ("{trial: {command: cnn}}", {"run-name": "{step}"}, r"A run would have the study's own folder"),
        (
            "{cnn: {seed: 3}}",
            {"seeds": ["0", "1"]},
            r"methods.cnn: seed is 3, .* with 0, 1: leave out the method's seed",
        ),
        ("{probe: {seed: 0}}", {"seeds": ["0"]}, r"methods.probe: seed is 0, .* or the study's seeds"),
        (
            "{cnn: {}}",
            {"name": "mlartifacts"},
            r"The study's name mlartifacts is the name of what the MLflow store keeps",
        ),
        (
            "{mlflow.db: {command: cnn}}",
            {"run-name": "{step}"},
            r"methods.mlflow.db: a run's name mlflow.db is the name of what the MLflow store keeps in --out outputs",
        ),
        (
            "{cnn: {}}",
            {"sweeps": {"s": {"method": "vgg"}}},
            r"sweeps.s: method: 'vgg' is no method to train; there are: cnn",
        ),
        ("{cnn: {}}", {"sweeps": {"s": {}}}, r"sweeps.s: method is missing: name of cnn"),
        ("{cnn: {}}", {"sweeps": {"s": {"method": "cnn", "trials": "0"}}}, r"sweeps.s: --trials must be at least 1"),
        (
            "{cnn: {}, segment: {}}",
            {"ensembles": {"e": {"runs": ["segment"]}}},
            r"e: runs: 'segment' is no classifier",
        ),
        ("{cnn: {}}", {"ensembles": {"e": {"runs": ["cnn"]}}}, r"ensembles.e: An ensemble joins several runs"),
        (
            "{zeroshot: {}}",
            {"crossval": {"methods": ["zeroshot"]}},
            r"crossval: methods: 'zeroshot' is no method to train\.",
        ),
        ("{b: {command: cnn}}", {"encoders": {"b": {}}}, r"'b' is the name of an encoder and of a method"),
        (
            "{cnn: {}}",
            {"encoders": {"b": {"modell": "x"}}},
            r"encoders.b: there is no setting 'modell'; near it: model",
        ),
    ],
)
def test_what_is_wrong_in_a_study_is_named_with_its_place(methods, more, message):
    with pytest.raises(UserError, match=message):
        plan_study(study_of(f"{{data: {DATA}, methods: {methods}}}", **more))


def test_a_name_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text(f"data: {DATA}\nmethods:\n  cnn: {{}}\n  cnn: {{tta: true}}\n")
    with pytest.raises(UserError, match="the key 'cnn' stands twice"):
        read_study(tmp_path / "s.yaml")
    (tmp_path / "s.json").write_text(json.dumps({"data": {"source": "phantom", "out": "d"}, "methods": {"cnn": {}}}))
    assert [step.name for step in plan_study(read_study(tmp_path / "s.json"))] == ["prepare", "cnn", "audit", "report"]


def test_seeds_multiply_what_is_trained_and_what_learns_from_it_seed_by_seed():
    methods = "{zeroshot: {encoder: a}, finetune: {encoder: a}, probe: {encoder: finetune}}"
    steps = steps_of(methods, seeds=["0", "7"])
    assert [name for name in steps if steps[name].is_method] == [
        *("zeroshot-val", "zeroshot", "finetune-seed0", "finetune-seed7", "probe-seed0", "probe-seed7"),
    ]
    assert steps["probe-seed7"].needs == ("prepare", "finetune-seed7")
    assert steps["probe-seed7"].config.clip.pretrained == "outputs/trial-finetune-seed7"
    assert [steps[name].config.seed for name in ("probe-seed0", "probe-seed7")] == [0, 7]
    assert len(steps["compare"].input_folders) == 5


def test_no_two_steps_may_make_the_same_embeddings_at_once():
    methods = """
      zeroshot: {encoder: a}
      probe: {encoder: a}
      coop: {encoder: b}
      raw: {command: zeroshot, encoder: a, input: raw}
      finetune: {encoder: a}
      p1: {command: probe, encoder: finetune}
      p2: {command: probe, encoder: finetune}
      seed: {command: probe, encoder: a, seed: 1}
      b1: {command: probe, encoder: b, seed: 1}"""
    steps = steps_of(methods)
    made = {name: step.after for name, step in steps.items() if step.is_method and step.after}
    assert made == {
        "zeroshot-val": ("embed-a",),
        "zeroshot": ("zeroshot-val",),
        "probe": ("embed-a",),
        "coop": ("embed-b",),
        "raw-val": ("embed-a-2",),
        "raw": ("raw-val",),
        "p2": ("p1",),
        "seed": ("embed-a-3",),  # whose weights are drawn from another seed
        "b1": ("embed-b",),
    }
    assert steps["embed-a-2"].config.input == "raw"
    assert steps["embed-a-3"].config.seed == 1


def test_sweeps_and_crossvalidations_are_of_the_method_with_its_settings():
    text = (
        f"{{data: {DATA}, compute: {{workers: 0}}, methods: {{cnn: {{arch: resnet50, weights: none}}, probe: {{}}}}, "
    )
    text += "sweeps: {tuned: {method: cnn, trials: 5}}, crossval: {methods: [cnn, probe], folds: 3}}"
    steps = {step.name: step for step in plan_study(study_of(text))}
    for name in ("tuned-search", "cnn-crossval", "probe-crossval"):
        assert config_of_line(shlex.join(steps[name].args)) == steps[name].config
        assert steps[name].training_config.compute.workers == 0
    assert (steps["tuned-search"].config.trials, steps["tuned-search"].training_config.arch) == (5, "resnet50")
    assert steps["tuned"].needs == ("prepare", "tuned-search")
    assert steps["cnn-crossval"].config.folds == 3
    assert [*steps["compare"].input_folders] == ["cnn", "probe", "tuned"]
    assert [*steps["compare-crossval"].input_folders] == ["cnn-crossval", "probe-crossval"]
    assert steps["compare-crossval"].config.split == "crossval"


def test_ensembles_join_all_seeds_of_their_methods_and_are_compared():
    steps = steps_of(
        "{cnn: {}, zeroshot: {encoder: a}, segment: {}}",
        seeds=["0", "1"],
        ensembles={"both": {"runs": ["cnn", "zeroshot"], "rule": "weights"}},
    )
    both = steps["both"]
    assert both.args[1:4] == ("outputs/trial-cnn-seed0", "outputs/trial-cnn-seed1", "outputs/trial-zeroshot")
    assert config_of_line(shlex.join(both.args)) == both.config
    assert both.needs == ("cnn-seed0", "cnn-seed1", "zeroshot")
    assert "both" in steps["compare"].input_folders
    assert not both.computes


def test_kinds_are_compared_among_themselves():
    steps = steps_of("{cnn: {}, u: {command: segment}, v: {command: segment}, probe: {}}")
    assert [*steps["compare"].input_folders] == ["cnn", "probe"]
    assert [*steps["compare-segmentation"].input_folders] == ["u", "v"]


def test_the_audit_is_against_the_external_data_and_the_report_takes_all():
    other = {"source": "phantom", "out": "data/other"}
    steps = steps_of("{cnn: {}, zeroshot: {encoder: a}}", external={"other": other}, audit={"seed": "3"})
    assert [*steps][-3:] == ["compare", "audit", "report"]
    audit = steps["audit"].config
    assert (str(audit.data), list(map(str, audit.against)), audit.seed) == ("data/phantom", ["data/other"], 3)
    assert audit.fail_on == "never"  # its findings are in the report, and do not fail the study
    assert steps["audit"].needs == ("prepare", "prepare-other")
    assert steps["report"].input_folders == steps["compare"].input_folders
    assert steps["report"].optional_folders == {"audit": ("audit", Path("outputs/trial-audit"))}
    assert str(steps["report"].config.study) == "outputs/trial"
    assert steps["report"].combined == {"compare": Path("outputs/trial-compare")}
    alone = steps_of("{cnn: {}}", audit="false")
    assert [*alone] == ["prepare", "cnn", "report"]
    assert alone["report"].optional_folders == {}
    assert [*steps_of("{cnn: {}}", audit="false", report="no")] == ["prepare", "cnn"]


@pytest.fixture(scope="module")
def schema():
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_valid_by_schema_and_by_the_configs(text, schema, tmp_path, monkeypatch):
    schema.validate(yaml.safe_load(text))
    monkeypatch.chdir(tmp_path)
    for step in plan_study(study_of(text)):
        if not step.input_folders:
            assert config_of_line(shlex.join(step.args)) == step.config


@pytest.mark.parametrize(
    ("methods", "more"),
    [
        ("{cnn: {optim: {ephocs: 3}}}", {}),
        ("{cnn: {optim.ephocs: 3}}", {}),
        ("{cnn: {optim: {epochs: ten}}}", {}),
        ("{cnn: {optim: {keep: first}}}", {}),
        ("{cnn: {tta: maybe}}", {}),
        ("{cnn: {data: elsewhere}}", {}),
        ("{resnet: {arch: resnet50}}", {}),
        ("{cnn: {command: probe}}", {}),
        ("{net: {command: cnn, encoder: b}}", {}),
        ("{net: {command: cnn, shots: 3}}", {}),
        ("{a/b: {command: cnn}}", {}),
        ("{}", {}),
        ("{cnn: {}}", {"metods": {}}),
        ("{cnn: {}}", {"data": {"source": "phantom"}}),
        ("{cnn: {}}", {"sweeps": {"s": {"trials": 3}}}),
        ("{cnn: {}}", {"encoders": {"b": {"modell": "x"}}}),
    ],
)
def test_the_schema_refuses_what_a_study_may_not_say(methods, more, schema):
    content = yaml.safe_load(
        f"{{data: {DATA}, methods: {{net: {{command: cnn, arch: resnet50, optim: {{lr: 2e-3}}}}}}}}"
    )
    assert schema.is_valid(content)
    assert not schema.is_valid(content | {"methods": yaml.safe_load(methods)} | more)


def test_the_schema_has_every_setting_with_its_help(schema):
    for name in method_commands():
        described = schema.schema["$defs"][name]["properties"]
        for flag in settings_of(config_of(name), SET_BY_STUDY).values():
            assert described[flag.name]["description"] == flag.text


def test_the_command_prints_the_schema_and_plans_without_doing_anything(tmp_path, schema):
    def clipcovid(*words):
        command = [sys.executable, "-m", "clipcovid", "study", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert json.loads(clipcovid("--schema").stdout) == json.loads(json.dumps(schema.schema))
    (tmp_path / "demo.yaml").write_text(DEMO.read_text())
    planned = clipcovid("demo.yaml", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    shown = [line.split()[0] for line in planned.stdout.splitlines() if re.search(r"\d:\d\d:\d\d", line)]
    assert shown == [*(step.name for step in plan_study(demo_study(False))), "all"]
    assert "within a factor of three" in " ".join(planned.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]
    with pytest.raises(UserError, match=r"^Which study\? Name its file, as in: clipcovid study study.yaml\.$"):
        study.main(study.StudyConfig())


def estimates_of(tmp_path, text, **more):
    steps = plan_study(study_of(text, out=str(tmp_path), **more))
    return {step.name: step for step in steps}, Estimates(steps=steps, out=tmp_path, cores=2)


def test_estimates_grow_with_images_epochs_pixels_and_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """
    data: {source: phantom, out: data/phantom, phantom: {images: 600}, size: 128}
    methods:
      cnn: {optim: {epochs: 10}}
      long: {command: cnn, optim: {epochs: 20}}
      large: {command: cnn, image-size: 256, optim: {epochs: 10}}
      deep: {command: cnn, arch: resnet50, optim: {epochs: 10}}
    crossval: {methods: [cnn], folds: 5}"""
    steps, estimates = estimates_of(tmp_path, text)
    cnn = estimates.work(steps["cnn"])
    train, val, test = 420, 60, 120
    assert cnn == pytest.approx((10 * (3 * train + val) + test) * 1.8 * (128 / 224) ** 2 / 50)
    assert estimates.work(steps["long"]) == pytest.approx(2 * cnn, rel=0.02)
    assert estimates.work(steps["large"]) == pytest.approx(4 * cnn)
    assert estimates.work(steps["deep"]) == pytest.approx(cnn * 4.1 / 1.8)
    assert estimates.work(steps["cnn-crossval"]) == pytest.approx(5 * cnn)
    assert estimates.disk(steps["prepare"]) == 600 * 3 * 128**2  # an image and two masks
    assert estimates.images(steps["cnn"]).total == 600
    assert not (tmp_path / "data").exists()
    far = {"far": {"source": "phantom", "out": "data/far", "phantom": {"images": "50"}}}
    more, external = estimates_of(tmp_path, text, external=far)
    added = external.work(more["compare"]) - estimates.work(steps["compare"])
    assert added == pytest.approx(50 * (3 * 1.8 + 4.1) / 50)  # four methods predict 50 images at 50 GFLOPS


def test_of_several_versions_in_a_folder_the_named_one_is_counted(tmp_path):
    other = {name.replace("9A", "9B"): text for name, text in LISTS.items()}
    covidx(tmp_path / "covidx", LISTS | other)
    text = f"""
    data: {{source: covidx, root: {tmp_path}/covidx, version: 9B, out: data/covidx}}
    methods: {{zeroshot: {{}}}}"""
    steps, estimates = estimates_of(tmp_path, text)
    assert estimates.images(steps["prepare"]).total == len(ROWS)


def test_nothing_is_looked_for_in_data_that_are_not_prepared(tmp_path, phantoms):
    far = {"far": {"source": "table", "root": "nowhere.csv", "out": str(tmp_path / "far")}}
    steps, estimates = estimates_of(
        tmp_path, f"{{data: {phantoms}, methods: {{cnn: {{}}, probe: {{}}}}}}", external=far
    )
    assert estimates.are_prepared([steps["cnn"], steps["report"]])
    assert not estimates.are_prepared([steps["compare"]])  # its external data could not be prepared
    assert estimates.seconds_of([steps["cnn"], steps["compare"]]) is None
    with pytest.raises(UserError, match="nowhere"):
        estimates.work(steps["compare"])


def test_estimates_follow_what_finished_steps_took(tmp_path):
    text = f"{{data: {DATA}, methods: {{cnn: {{}}, vit: {{command: cnn, arch: resnet50}}, segment: {{}}}}}}"
    steps, estimates = estimates_of(tmp_path, text)
    plain = {name: estimates.seconds(step) for name, step in steps.items()}
    work = estimates.work(steps["cnn"])
    (tmp_path / "trial").mkdir()
    plan = {"steps": [{"name": "cnn", "command": ["clipcovid", "cnn"]}]}
    done = {"cnn": {"state": "done", "seconds": 8 + 3 * work, "work": work}}
    (tmp_path / "trial" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "trial" / "steps.json").write_text(json.dumps({"steps": done}))
    steps, estimates = estimates_of(tmp_path, text)
    assert estimates.correction("cnn") == pytest.approx(3)
    assert estimates.correction("segment") == pytest.approx(3)  # of all commands, where none of its own is done
    for name in ("cnn", "vit", "segment"):
        start = plain[name] - estimates.work(steps[name])
        assert estimates.seconds(steps[name]) == pytest.approx(start + 3 * estimates.work(steps[name]))
