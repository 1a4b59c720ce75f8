"""The documentation is true of the code: shell commands parse, targets of make exist, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SCRIPTS = {"running.md"}  # its blocks are more than commands
PAGES = ["README.md"] + sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md") if p.name not in SCRIPTS)
EXAMPLE = "point-mass"  # a benchmark that docs/benchmarks.md adds
FOREIGN = ("pip", "tensorboard", "cp", ".")  # shown, and not ours to parse

# In a process of its own: every command stops once its options are parsed and, where it has a configuration, checked.
PARSE = """
import contextlib, importlib, io, json, shlex, sys
import sim.options

class Parsed(BaseException): pass

configured = []
add_options, from_options, parse_args = sim.options.add_options, sim.options.from_options, sim.options.Parser.parse_args

def adding(parser, *rest, **more):
    configured.append(parser.prog)
    return add_options(parser, *rest, **more)

def stopping(config, options, **base):
    from_options(config, options, **base)
    raise Parsed

def parsing(self, *given):
    found = parse_args(self, *given)
    if f"{self.prog} {vars(found).get('command', '')}".strip() not in configured:
        raise Parsed
    return found

sim.options.add_options, sim.options.from_options, sim.options.Parser.parse_args = adding, stopping, parsing
for line in json.load(sys.stdin):
    _, _, package, *arguments = shlex.split(line)
    said = io.StringIO()
    module = importlib.import_module(package if "." in package else f"{package}.__main__")
    sys.argv[1:] = arguments
    configured.clear()
    try:
        with contextlib.redirect_stderr(said):
            module.main()
        said.write(f"{package} has run")
    except Parsed:
        continue
    except (Exception, SystemExit) as error:
        said.write(repr(error))
    print(f"{line}: {said.getvalue()}")
"""


def shown():
    """The commands of all blocks without a language and of the campaign files, without their comments."""
    blocks = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks += [block.replace("\\\n", " ") for language, block in found if language == ""]
    for file in sorted((ROOT / "docs" / "results").glob("*.toml")):
        blocks.append("\n".join(re.findall(r"^#   (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)))
    for line in (line for block in blocks for line in block.splitlines()):
        for part in re.split(r"&&|\|\||;", line):
            if EXAMPLE not in part and (words := shlex.split(part, comments=True)):
                yield words


def recipe(words):
    """The `python -m` lines that a target of make runs with these variables."""
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/.ready", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"make {shlex.join(words)}: {done.stderr}"
    return [
        shlex.split(line) for line in re.findall(r"\.venv/bin/(python -m [^|&;\n]*)", done.stdout.replace("\\\n", ""))
    ]


def python_lines():
    return [words for words in shown() if words[0] == "python"]


def make_lines():
    return [words[1:] for words in shown() if words[0] == "make"]


def parse(lines):
    """Errors of `python -m` lines of this repository, each [word]."""
    ours = [shlex.join(words) for words in lines if words[2].split(".")[0] in ("sim", "data", "train", "eval", "bench")]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(ours), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_every_command_shown_is_one_of_ours_or_known():
    commands = {words[0] for words in shown()}
    assert commands <= {"make", "python", *FOREIGN}
    assert len(make_lines()) > 15
    assert len(python_lines()) > 25


def test_every_make_line_names_targets_and_variables_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", makefile, re.MULTILINE))
    for words in make_lines():
        names = [word for word in words if "=" not in word]
        assert names
        assert set(names) <= targets, words
        for word in words:
            assert "=" not in word or f"$({word.partition('=')[0]})" in makefile, words


def test_every_target_of_the_makefile_is_shown():
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= {word for words in make_lines() for word in words}


def test_every_python_line_parses():
    assert parse(python_lines()) == ""


def test_every_recipe_of_a_make_line_parses():
    assert parse([line for words in make_lines() for line in recipe(words)]) == ""


def test_a_line_that_does_not_parse_is_found():
    lines = ["python -m data collect --out x --episodse 3", "python -m train --preset demoo", "python -m eval.tables"]
    found = parse([line.split() for line in [*lines, "python -m data info x", "python -m train --preset demo"]])
    assert [line for line in lines if f"{line}: " in found] == lines
    assert "data info" not in found
    assert "Did you mean '--episodes'" in found


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make demo" in done.stdout


def test_every_link_to_a_file_leads_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def test_the_example_of_an_algorithm_is_the_one_there_is():
    assert (ROOT / "train/bc.py").read_text() in python_blocks("docs/algorithms.md")


def test_the_example_of_a_benchmark_is_a_benchmark():
    """The record as the page has it; what adds one otherwise is in tests/test_adding.py."""
    names = {}
    exec(python_blocks("docs/benchmarks.md")[0], names)
    record = names["POINT_MASS"]
    env = record.make_env()
    assert env.reset("left", 0).shape == (record.observation_size,)
    for count in range(record.horizon):
        action = np.array([1.0], np.float32)
        step = env.step(action)
        assert step.truncated == (count == record.horizon - 1)
    right, left, _ = record.rewards(step.quantities, action)
    assert right > 0 > left


def test_make_help_lists_every_target_that_pages_show():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for words in make_lines():
        for target in (word for word in words if "=" not in word and word != "help"):
            assert f"make {target} " in done.stdout or f"make {target}\n" in done.stdout, target
