"""`python -m recipe all`: the whole recipe. Or up to one phase, by name.

Run in `models/etude/` with the packages of `tools/python/requirements.txt`. `--work` is where checkpoints
and evaluation sets go: a phase whose result is there is skipped, an interrupted one resumes.

vision → base → mtp (writes the model's files into `--out`) → adapters (into `--out`/adapters) → score
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "8589934592")

import torch  # noqa: E402

from . import chat, export, make_eval, net, tokens, train  # noqa: E402

PHASES = ["vision", "base", "mtp", "adapters", "score"]
#: the share of pictures, chat and drills in what an adapter learns
ADAPTER_MIX = (0.55, 0.3, 0.15)
#: base phase, from a step on: the shares of pictures, chat and drills, of the sizes in `batches.SIZES`, and of
#: the kinds of question in `scenes.KINDS`. Copying names comes first because it takes longest to begin; then
#: pictures need most of the rest. Other sizes than 96×96 were too many at first: they held all pictures back.
#: "Is there a star?" is learned last, and moves when it is asked most.
MIXTURES = {
    0: ((0.5, 0.28, 0.22), (0.76, 0.12, 0.06, 0.06), (3, 2, 3, 3, 2, 3, 1.5, 3)),
    1600: ((0.74, 0.16, 0.10), (0.88, 0.06, 0.03, 0.03), (3, 2, 3, 3, 2, 3, 1.5, 3)),
    2180: ((0.74, 0.16, 0.10), (0.95, 0.0, 0.025, 0.025), (2, 3, 3, 2.5, 2, 5, 2, 3)),
    2640: ((0.72, 0.16, 0.12), (0.95, 0.0, 0.025, 0.025), (1.5, 3, 3, 1.5, 1, 10, 2, 3)),
    3360: ((0.80, 0.10, 0.10), (0.95, 0.0, 0.025, 0.025), (1, 1.5, 1.5, 1, 1, 18, 1, 2)),
    3560: ((0.72, 0.15, 0.13), (0.90, 0.0, 0.05, 0.05), (2, 2.5, 2, 2, 1.5, 6, 8, 3)),
}
BASE_STEPS, BASE_DECAY_FROM = 4050, 2200

ap = argparse.ArgumentParser(prog="recipe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("phase", choices=PHASES + ["all"])
ap.add_argument("--work", type=Path, default=Path("work"))
ap.add_argument("--out", type=Path, default=export.HERE)
ap.add_argument("--threads", type=int, default=1)
ap.add_argument("--compile", action="store_true", help="1.4 times as fast, after a minute or two of compiling")
args = ap.parse_args()
last = len(PHASES) - 1 if args.phase == "all" else PHASES.index(args.phase)
torch.set_num_threads(args.threads)
args.work.mkdir(parents=True, exist_ok=True)

codec = tokens.Codec(args.work / "tokenizer.json")
model = net.build(codec, seed=0)
torch.manual_seed(1)
heads = train.Heads()
train.log("parameters", net.parameters(model, net.Mtp(model.config.text_config)))
train.vision_phase(model, heads, args.work)
if last >= 1:
    train.base_phase(model, heads, codec, args.work, steps=BASE_STEPS, decay_from=BASE_DECAY_FROM, mixtures=MIXTURES, compiled=args.compile)
if last >= 2:
    with torch.no_grad():  # what follows learns on the weights as they are shipped
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    model.requires_grad_(False)
    mtp = train.mtp_phase(model, codec, args.work, steps=300, rows=8)
    export.folder(model, mtp, codec, args.work / "tokenizer.json", args.out)
if last >= 3:
    for i, style in enumerate(chat.STYLES):
        made = args.work / "adapters" / style
        if not (made / "adapter_config.json").exists():
            model = train.adapter_phase(model, codec, style, made, steps=150, seed=5000 + i, mix=ADAPTER_MIX)
        shutil.copytree(made, args.out / "adapters" / style, dirs_exist_ok=True)
if last >= 4:
    make_eval.generate(args.work / "eval", 2026, 60, False)
    from . import evaluate

    scorer = evaluate.Scorer(args.out)
    print(evaluate.report(evaluate.score(scorer, args.work / "eval")[0]))
