#!/usr/bin/env python3
"""Writes the golden files of the behaviour suite from transformers and PEFT.

    python make_goldens.py                    all tiny configurations, into the folder of this script
    python make_goldens.py --etude DIR        the goldens of the study model that lies in DIR
    python make_goldens.py --activated        those of activated adapters alone, for the models that lie here
    python make_goldens.py --drafts DIR       what the multi-token prediction layers draft, that of the study model in DIR too
    python make_goldens.py --check            writes both kinds anew elsewhere and compares with what is here
                                              (of the study model only if --etude is given too)

The environment is pinned in tools/python/requirements.txt. README.md beside this file tells what is written.
"""

import argparse
import filecmp
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# One thread, so that sums are taken in one order and each run on one machine gives the same bytes.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import warnings  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402

# That the reference runs on its own PyTorch code, without faster kernels, is what is wanted.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
sys.path.insert(0, str(Path(__file__).resolve().parent))

from maker import activated, drafts, etude, pictures, suite, tiny, vocabulary, writing  # noqa: E402

HERE = Path(__file__).resolve().parent


def write_tiny(out: Path, kept: Path, only: list[str]) -> None:
    """The named tiny configurations (all, if none is named), the shared files and the index."""
    chosen = [shape for shape in tiny.CONFIGURATIONS if not only or shape.name in only]
    ids = vocabulary.save(out / "tokenizer")
    shown = pictures.save(out / "images")
    writing.readable(out / "images")
    index = {}
    for shape in chosen:
        index[shape.name] = suite.write(shape, ids, shown, out / shape.name)
        print(shape.name, index[shape.name], flush=True)
    entries = json.loads((kept / "index.json").read_text())["configurations"] | index if only else index
    (out / "index.json").write_text(writing.to_text({"format": writing.FORMAT, "configurations": entries}))


def write_activated(out: Path, kept: Path, only: list[str]) -> None:
    """Activated adapters on the tiny configurations that are kept, which stay as they are."""
    for shape in tiny.CONFIGURATIONS:
        if shape.name in activated.ACTIVATED and (not only or shape.name in only):
            print(shape.name, activated.write(shape, kept, out / "activated" / shape.name), flush=True)


def replace(made: Path, kept: Path) -> None:
    """Puts what was made in the place of what is kept, once all of it is there."""
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir()):
        place = kept / path.name
        if path.is_dir():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(path, place)
        else:
            shutil.copyfile(path, place)


def compare(made: Path, kept: Path) -> int:
    """Prints every made file that is missing from the kept ones or differs; returns how many."""
    from safetensors.torch import load_file
    wrong = 0
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        other = kept / path.relative_to(made)
        if not other.exists():
            wrong += 1
            print(f"missing: {other}")
        elif not filecmp.cmp(path, other, shallow=False):
            wrong += 1
            far = ""
            if path.suffix == ".safetensors":
                new, old = load_file(path), load_file(other)
                if {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in old.items()}:
                    largest = max((new[k].float() - old[k].float()).abs().max().item() for k in new)
                    far = f" (numbers differ by at most {largest:.3g})"
            print(f"differs: {other}{far}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etude", type=Path, metavar="DIR", help="write the goldens of the study model in DIR")
    parser.add_argument("--activated", action="store_true", help="write only those of activated adapters, for the models here")
    parser.add_argument("--drafts", type=Path, metavar="DIR", help="write the drafts of the study model in DIR and of the kept tiny ones")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=[t.name for t in tiny.CONFIGURATIONS],
                        help="only this tiny configuration (may be given several times)")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: beside this script)")
    parser.add_argument("--check", action="store_true", help="compare a fresh run with what is kept; writes nothing here")
    given = parser.parse_args()
    kept = given.out.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        if given.etude:
            etude.write(given.etude.resolve(), made / "etude")
        if given.drafts:
            drafts.write(HERE, given.drafts.resolve(), made / "drafts")
        if given.activated:
            write_activated(made, kept, given.only)
        elif given.check or given.only or not (given.etude or given.drafts):
            write_tiny(made, kept, given.only)
            write_activated(made, made, [shape.name for shape in tiny.CONFIGURATIONS if (made / shape.name).exists()])
        if given.check:
            wrong = compare(made, kept)
            print("all files are equal" if wrong == 0 else f"{wrong} files differ")
            return min(wrong, 1)
        replace(made, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
