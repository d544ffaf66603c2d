"""Does the student see one chat template and one prompt pack wherever it is trained and played?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from emodistill.configs import AdapterConfig
from emodistill.runs import MANIFEST, Manifest, read_manifest
from emodistill.train.findings import Finding, some_of

TEMPLATE, PACK = "chat template", "prompt pack"
"""The inputs of a manifest that are the template's hash and the pack's."""


class _Made(NamedTuple):
    name: str
    """Stage and cell, as in `sft/default`."""
    manifest: Manifest


def check_templates(
    config: AdapterConfig,
    home: Path,
    *,
    weights: Collection[str],
    template: str,
    pack: str,
    sft_dir: Path | None,
) -> Finding:
    """Compare template and pack with what manifests of the run say of the same student.

    Args:
      home: the run's folder of the domain.
      weights: the hashes of the student's weights in manifests, by which it is known wherever its
        folder lies.
      template, pack: the hashes that this training would have.
      sft_dir: the cell of the SFT adapter that it starts from, if it starts from one.
    """
    problems, same, silent = [], [], []
    for name, manifest in _of_student(home, weights):
        theirs = manifest.inputs.get(TEMPLATE)
        if theirs is None:
            silent.append(name)
        elif theirs == template:
            same.append(name)
        else:
            problems.append(f"{name} was made with another chat template ({str(theirs)[:12]}…)")
    if sft_dir is not None:
        snapshot = read_manifest(sft_dir)
        theirs = None if snapshot is None else snapshot.inputs.get(PACK)
        if theirs is not None and theirs != pack:
            problems.append(
                f"sft/{sft_dir.name} was made with another prompt pack ({theirs[:12]}…)"
            )
    if problems:
        text = (
            f"{some_of(problems)}; here they are {template[:12]}… (template of {config.model}) and "
            f"{pack[:12]}… (pack). Put back what the student was trained with, or train it again."
        )
        return Finding("template", text, is_problem=True)
    text = f"chat template {template[:12]}…, prompt pack {pack[:12]}…"
    text += f"; the same template in {some_of(same)}" if same else "; nothing to compare with yet"
    if silent:
        text += f" ({some_of(silent)} don't say)"
    return Finding("template", f"{text}.")


def server_finding(url: str) -> Finding:
    """What can be said about the template of a server: nothing."""
    text = f"{url}: a server's chat template can't be seen from outside; not checked."
    return Finding("server", text, is_checked=False)


def _of_student(home: Path, weights: Collection[str]) -> Iterator[_Made]:
    """Finished adapters of that student, and dialogues that it has written."""
    for path in sorted(home.glob("*/*/*manifest.json")):
        manifest = read_manifest(path.parent, path.name)
        if manifest is None or manifest.status != "finished":
            continue
        if {*weights} & {*manifest.inputs.values()}:
            name = str(path.relative_to(home)).removesuffix(MANIFEST).rstrip("/.")
            yield _Made(name, manifest)
