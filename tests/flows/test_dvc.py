"""dvc.yaml says of code, params and outs what the code says, so DVC reruns a stage when, and only when, it must."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "store", "model")

# Code that moves bytes, speaks or waits, and never decides a result. A change of it reruns no stage; imports are not
# followed through it. What it carries (a schema, a digest) is imported by the module that decides, and counts there.
PLUMBING = {
    *(f"{room}/__init__.py" for room in ROOMS),
    *(
        f"flows/{name}.py"
        for name in ("batches", "command", "params", "paths", "process", "progress", "samples", "server", "stage")
    ),
    *(f"store/{name}.py" for name in ("dataset", "errors", "manifest", "table")),
}

# Not stages: the command line, what it alone uses, and the runner of stages.
COMMANDS = {
    *(f"flows/{name}.py" for name in ("cli", "cli_browse", "cli_clips", "cli_diff", "cli_health", "cli_lineage")),
    *(
        f"flows/{name}.py"
        for name in ("cli_registry", "clip_files", "console", "garbage", "page", "page_clip", "repro", "revisions")
    ),
    *(f"flows/{name}.py" for name in ("cli_mix", "cli_rewrites", "schedule", "unfinished", "video")),
    *(f"flows/{name}.py" for name in ("cli_score", "measures", "score_clips", "score_files")),
    *(f"flows/{name}.py" for name in ("card", "cli_hub", "croissant", "fetch", "markdown", "model_card")),
    *(f"flows/{name}.py" for name in ("publish", "publish_model")),
}


@cache
def stages() -> dict[str, dict]:
    """Stage entries of dvc.yaml; a `foreach` stage is its `do` part, with ${key} and ${item.prev} left in."""
    found = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: entry.get("do", entry) for name, entry in found.items()}


def module_of(stage: str) -> str:
    """flows/train.py of `python -m flows.train --round r0`."""
    return re.fullmatch(r"python -m (flows\.\w+)( .*)?", stages()[stage]["cmd"])[1].replace(".", "/") + ".py"


@cache
def imports(file: str) -> frozenset[str]:
    """Files of this project that a file imports, also within functions, but not for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(filter(None, (path_of(alias.name) for alias in node.names)))
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.update(
                filter(None, (path_of(f"{node.module}.{a.name}") or path_of(str(node.module)) for a in node.names))
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((ROOT / file).read_text()))
    return frozenset(found)


def path_of(module: str) -> str | None:
    """store/table.py of `store.table`; None for what is no module of this project."""
    path = module.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if path.split("/")[0] in ROOMS and (ROOT / candidate).is_file():
            return candidate
    return None


def closure(file: str) -> set[str]:
    """A file and all that it imports, directly or not, but for plumbing."""
    seen: set[str] = set()
    ahead = [file]
    while ahead:
        one = ahead.pop()
        if one not in seen and one not in PLUMBING:
            seen.add(one)
            ahead.extend(imports(one))
    return seen


@pytest.mark.parametrize("stage", stages())
def test_code_deps_are_the_import_closure(stage):
    code = {dep for dep in stages()[stage]["deps"] if dep.endswith(".py")}
    assert code == closure(module_of(stage))


def test_tables_and_templates_of_a_module_are_deps_where_it_is():
    """Files beside the code that a module reads by name, as model/reversal_rules.toml."""
    for stage, entry in stages().items():
        for file in closure(module_of(stage)):
            source = (ROOT / file).read_text()
            read = {f"{Path(file).parent}/{name}" for name in re.findall(r"with_name\(\"([\w.]+)\"\)", source)}
            assert {name for name in read if not name.endswith(".py")} <= set(entry["deps"]), (stage, file)


def test_every_module_of_flows_is_a_stage_a_command_or_plumbing():
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "flows").glob("*.py")}
    used = set().union(*(closure(module_of(stage)) for stage in stages()))
    assert files == {file for file in used if file.startswith("flows/")} | {
        file for file in PLUMBING | COMMANDS if file.startswith("flows/")
    }
    assert all((ROOT / file).is_file() for file in PLUMBING | COMMANDS)


def test_imports_are_found_wherever_they_stand():
    assert "model/pipeline.py" in imports("flows/base.py")
    assert "model/drift.py" in imports("flows/natural.py")  # from model import drift
    assert "store/table.py" in PLUMBING
    assert {"store/digest.py", "store/schema.py"} <= closure("store/mixture.py")


def knobs(values: dict, prefix: str = "") -> set[str]:
    """Dotted names of all single values."""
    found: set[str] = set()
    for key, value in values.items():
        found |= knobs(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return found


def covered(name: str, by: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in by)


def stage_params(stage: str) -> set[str]:
    entry = stages()[stage]
    named = {param.replace("${key}", "r1") for param in entry.get("params", ())}
    text = str(entry["cmd"]) + str(entry["deps"]) if "deps" in entry else str(entry["cmd"])
    used = set(re.findall(r"\$\{([\w.]+)\}", text))
    assert used <= {"key", "item.prev", "seed.source"}
    return named | {one.replace("item.", "rounds.r1.") for one in used if one != "key"}


def test_every_knob_is_a_param_of_some_stage():
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    names = knobs(params)
    # `catalog` and `report` name all of `rounds`: to notice a round more or less, not to use its values.
    told = set().union(*(stage_params(stage) for stage in stages() if stage not in ("catalog", "report")))
    rounds = {name for name in names if name.startswith("rounds.") and not name.startswith("rounds.r1.")}
    missing = {name for name in names - rounds if not covered(name, told) and not name.startswith("resources.")}
    assert missing == set()
    assert not any(one.split(".")[0] == "resources" for stage in stages() for one in stage_params(stage))


@pytest.mark.parametrize("stage", stages())
def test_params_are_the_sections_that_the_code_reads(stage):
    """Every `params.SECTION` in a stage's own module, and in the generator where it is used, is a param of it."""
    files = {module_of(stage)} | ({"flows/generator.py"} & imports(module_of(stage)))
    nodes = [node for file in files for node in ast.walk(ast.parse((ROOT / file).read_text()))]
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) in ("params", "self.params")}
    told = {one.split(".")[0] for one in stage_params(stage)}
    rounds = {"round", "round_names", "rounds_until", "steps_of"} & used
    unused = {"corrective"} if stage.endswith("_r0") else set()  # round r0 has no corrective clips
    assert used - rounds - unused - {"resources"} <= told
    assert not rounds or told & {"rounds", "r0", "train"}


def test_params_of_stages_exist():
    names = knobs(YAML(typ="safe").load((ROOT / "params.yaml").read_text()))
    for stage in stages():
        for param in stage_params(stage):
            assert any(covered(name, {param}) for name in names), f"{stage}: {param}"


def outs_of(stage: str) -> list[str]:
    entry = stages()[stage]
    return [next(iter(out)) if isinstance(out, dict) else out for out in (*entry["outs"], *entry.get("metrics", ()))]


def test_every_out_is_of_one_stage():
    outs = [out for stage in stages() for out in outs_of(stage)]
    assert len(outs) == len(set(outs))
    for out in outs:
        above = {parent.as_posix() for parent in Path(out).parents}
        assert not above & set(outs), f"{out} lies in another stage's out"
    # Listed in .gitignore beforehand: DVC does it only once a stage has succeeded.
    ignored = {line.strip("/*") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {Path(out).parts[0] for out in outs} <= ignored


@pytest.mark.parametrize("stage", stages())
def test_run_record_is_an_out_of_its_stage(stage):
    """A stage with a record has it as its out under the name that Stage.record_path gives; the others have none."""
    source = (ROOT / module_of(stage)).read_text()
    records = [out for out in outs_of(stage) if out.startswith("data/runs/")]
    if re.search(r"record=False", source):
        assert stage in ("catalog", "report")
        assert records == []
        return
    name = re.search(r"(?:with|=) Stage\(\s*\"(\w+)\"", source)[1]
    round = re.search(r"--round (\S+)", stages()[stage]["cmd"])
    assert records == [f"data/runs/{name}_{round[1]}.json" if round else f"data/runs/{name}.json"]
    assert module_of(stage) == f"flows/{name}.py"


def test_only_the_catalog_depends_on_run_records():
    """Records hold times and hosts: whatever depends on them would run again for nothing."""
    readers = [stage for stage in stages() if any(dep.startswith("data/runs") for dep in stages()[stage]["deps"])]
    assert readers == ["catalog"]
    tables = [dep for stage in stages() for dep in stages()[stage]["deps"] if dep.startswith("data/store")]
    assert tables == []  # a Lance folder never has the same bytes twice: stages depend on manifests
