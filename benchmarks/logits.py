"""`python -m benchmarks.logits`: memory and time of a micro-batch with a large vocabulary, its logits made at once and
in parts. Prints a table in Markdown.

A random model of the width and vocabulary of Qwen2.5-0.5B with few layers, so that the output layer is what counts;
forward and backward pass of the log-probs and entropies of `--responses` tokens, each way in a process of its own.
Memory is how much the process's peak grew over what it held before.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from opid_core.learning import last_layer

VOCABULARY, WIDTH, HEADS = 151_936, 896, 14
PROMPT_TOKENS = 300
ROWS = 4


def measure(responses: int, logits_at_once: int) -> dict[str, float]:
    """Peak growth in MiB and seconds of one pass; in this process, whose peak must not have been higher before."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
    )
    policy = Qwen2ForCausalLM(config).train()
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what every pass has
    each = responses // ROWS
    ids = torch.randint(VOCABULARY, (ROWS, PROMPT_TOKENS + each))
    rows = torch.arange(ROWS).repeat_interleave(each)
    columns = PROMPT_TOKENS - 1 + torch.arange(each).repeat(ROWS)
    last_layer.LOGITS_AT_ONCE = logits_at_once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    log_probs, _ = last_layer.log_probs_at(policy, ids, rows, columns, ids[rows, columns + 1], entropy=True)
    log_probs.mean().backward()
    taken_s = time.process_time() - began_s
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"mib": grown / 1024, "cpu_s": taken_s, "mean": float(log_probs.detach().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, nargs="+", default=[1024, 2048], metavar="TOKENS")
    parser.add_argument("--measure", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
        return
    print("| response tokens | logits | peak grows by (MiB) | CPU s | mean log-prob |\n|---|---|---|---|---|")
    for responses in given.responses:
        for title, at_once in (("at once", VOCABULARY * responses), ("in parts", last_layer.LOGITS_AT_ONCE)):
            command = [sys.executable, "-m", "benchmarks.logits", "--measure", str(responses), str(at_once)]
            numbers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| {responses:,} | {title} | {numbers['mib']:,.0f} | {numbers['cpu_s']:.1f} | {numbers['mean']:.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
