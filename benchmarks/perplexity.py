"""Perplexity of models on documents of the sandbox's corpus that no training saw: what pre-training taught, and what
later training took away (the alignment tax, Ouyang et al. 2022 section 4.2).

    python benchmarks/perplexity.py cai/sandbox/checkpoint [MODEL ...] [--num-tokens 100000] [--output FILE.json]

A document's tokens count by the weight they had in training (the prompt of a dialogue, say, has none). Bootstrap over
documents, 95 %.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from cai.evaluation_sets.perplexity import HELD_OUT
from cai.models.digest import model_digest
from cai.models.loading import load_causal_lm
from cai.models.perplexity import losses
from cai.records import write_json
from cai.sandbox.source import SandboxSource


def perplexity(sums: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """exp of the mean loss per token, with its interval."""
    rng = np.random.default_rng(0)
    picked = sums[rng.integers(len(sums), size=(draws, len(sums)))].sum(axis=1)
    low, high = np.exp(np.quantile(picked[:, 0] / picked[:, 1], [0.025, 0.975]))
    total = sums.sum(axis=0)
    return {"perplexity": math.exp(total[0] / total[1]), "low": low, "high": high, "num_documents": len(sums)}


def main() -> None:
    """Measure and print a row per model and kind of document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders with the sandbox's tokenizer")
    parser.add_argument("--num-tokens", type=int, default=100_000, help="size of the held-out text (%(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    documents = sorted(SandboxSource().documents(HELD_OUT, 1.0, args.num_tokens), key=lambda d: len(d.ids))
    kinds = sorted({d.kind for d in documents})
    figures = {}
    for path in args.models:
        sums = np.array(losses(load_causal_lm(path), documents))
        own = {kind: perplexity(sums[[d.kind == kind for d in documents]]) for kind in kinds}
        figures[path] = {"model_digest": model_digest(path), "all": perplexity(sums), "by_kind": own}
        print(path)
        for kind, figure in [("all", figures[path]["all"]), *own.items()]:
            interval = f"[{figure['low']:.3f}, {figure['high']:.3f}]"
            print(f"  {kind:<16} {figure['perplexity']:7.3f} {interval}  {figure['num_documents']} documents")
    if args.output:
        write_json(args.output, {"num_tokens": args.num_tokens, "models": figures})


if __name__ == "__main__":
    main()
