"""What a check says when something is not as it must be, and how the checks read files and run programs.

Owns: the one error of all checks; the rule that a check which cannot fail is none.
Does not: know any file of deploy/.
"""

import subprocess

import ruamel.yaml


class Wrong(Exception):
    """Something in deploy/ is not as it must be."""


def need(holds, words):
    if not holds:
        raise Wrong(words)


def expect_wrong(what, check):
    """A check that cannot fail is none."""
    try:
        check()
    except Wrong:
        return
    raise SystemExit(f"nothing was found wrong in {what}: the checks do not check that")


def run(command, **more):
    """Runs a program; its words are the error's when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
    words = (done.stderr.strip() or done.stdout.strip()).splitlines()
    need(done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n  " + "\n  ".join(words))
    return done.stdout


def load(text):
    return ruamel.yaml.YAML(typ="safe", pure=True).load(text)


def load_all(text):
    return [document for document in ruamel.yaml.YAML(typ="safe", pure=True).load_all(text) if document is not None]
