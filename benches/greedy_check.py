"""Are greedy ids the same as transformers' own, request by request?

Two engines that add in a different order may pick different tokens where the two best logits are
nearly equal; from there on the texts differ rightly. So a difference is a *tie* if, at the first
token that differs, the logit of the engine's choice is within `TIE_GAP` of the best one. Anything
else is an error.
"""

from dataclasses import dataclass
from pathlib import Path

from engines import hf_generate
from workloads import load

TIE_GAP = 1e-4


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first token of a request that differs from transformers' choice."""

    request: int
    position: int
    expected: int
    got: int
    gap: float


@dataclass(frozen=True, kw_only=True)
class GreedyReport:
    """The outcome of a comparison."""

    num_requests: int
    ties: list[Difference]
    different: list[Difference]

    def __str__(self) -> str:
        num_equal = self.num_requests - len(self.ties) - len(self.different)
        counts = f"{num_equal} equal, {len(self.ties)} ties, {len(self.different)} different"
        lines = [f"{self.num_requests} requests, each with exactly its max_tokens: {counts}"]
        for kind, differences in (("tie", self.ties), ("different", self.different)):
            lines += [
                f"{kind}: request {d.request}, output token {d.position}: expected {d.expected}, "
                f"got {d.got}, logits {d.gap:.2e} apart"
                for d in differences
            ]
        return "\n".join(lines)


def compare(
    model_dir: str, workload_file: Path, token_ids: list[list[int]], *, dtype: str
) -> GreedyReport:
    """Compares an engine's ids with those of transformers, run one request at a time.

    Args:
        model_dir: the model that made them.
        workload_file: the workload that they answer.
        token_ids: output ids of each request in the order of the file.
        dtype: the type the engine computed in.

    Raises:
        ValueError: if a request has more or fewer ids than its max_tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
    ties: list[Difference] = []
    different: list[Difference] = []
    requests = load(workload_file)["requests"]
    for index, (request, got) in enumerate(zip(requests, token_ids, strict=True)):
        if len(got) != request["max_tokens"]:
            message = f"request {index} must get {request['max_tokens']} tokens, got {len(got)}"
            raise ValueError(message)
        prompt = request["prompt_token_ids"]
        with torch.inference_mode():
            expected = hf_generate(model, [prompt], num_new_tokens=len(got))[0]
        if got == expected:
            continue
        position = next(i for i in range(len(got)) if got[i] != expected[i])
        with torch.inference_mode():
            context = torch.tensor([prompt + expected[:position]])
            logits = model(context, logits_to_keep=1).logits[0, -1].float()
        gap = float(logits.max() - logits[got[position]])
        difference = Difference(
            request=index,
            position=position,
            expected=expected[position],
            got=got[position],
            gap=gap,
        )
        (ties if gap < TIE_GAP else different).append(difference)
    return GreedyReport(num_requests=len(requests), ties=ties, different=different)
