"""One engine on one workload file, in this process; prints one JSON line.

    python benches/engines.py pagedkv|hf-static|hf-sequential|hf-continuous MODEL WORKLOAD [--batch 16]

Greedy, ending tokens ignored, every request runs to its max_tokens. benches/throughput.py starts
this file once per engine and round, so that no engine inherits another's memory or threads.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Set before torch is imported. Threads that spin while they wait slow any other busy process on a
# shared machine tenfold; the same rule holds for every engine.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}.items():
    os.environ.setdefault(_name, _value)

from workloads import Workload, load, num_tokens  # noqa: E402  (the settings above come first)

NUM_WARM_UP_TOKENS = 2

# transformers' continuous batching: small pages waste less of its cache; a batch of more tokens was slower on two cores.
HF_PAGE_SIZE = 64
HF_SPARE_PAGES = 16
HF_BATCH_TOKENS = 1024
HF_PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class LegOptions:
    """What a run of one engine needs to know."""

    model: str
    workload: Workload
    batch: int
    dtype: str
    engine_args: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LegRun:
    """What a run gave: times in seconds and the output ids of every request in order."""

    version: str
    import_s: float
    init_s: float
    run_s: float
    token_ids: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class ResultLine:
    """The line that is printed; the field names are shared by the benches of the field."""

    engine: str
    version: str
    model: str
    workload: str
    import_s: float
    init_s: float
    run_s: float
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    peak_rss_mb: int
    threads: int


def main() -> None:
    """Runs one engine and prints its result line."""
    parser = argparse.ArgumentParser(description="runs one engine on a workload file")
    parser.add_argument("engine", choices=sorted(LEGS))
    parser.add_argument("model")
    parser.add_argument("workload", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="rows of a static batch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="JSON for pagedkv.LLM")
    parser.add_argument("--ids-out", type=Path, help="also write the output ids to this file")
    arguments = parser.parse_args()
    workload = load(arguments.workload)
    options = LegOptions(
        model=arguments.model,
        workload=workload,
        batch=arguments.batch,
        dtype=arguments.dtype,
        engine_args=arguments.engine_args,
    )
    run = LEGS[arguments.engine](options)
    if arguments.ids_out is not None:
        arguments.ids_out.write_text(json.dumps(run.token_ids))
    name = f"hf-static-{options.batch}" if arguments.engine == "hf-static" else arguments.engine
    line = result_line(name, options, run)
    sys.stdout.write(json.dumps(asdict(line)) + "\n")


def result_line(engine: str, options: LegOptions, run: LegRun) -> ResultLine:
    """Sums up one run.

    Raises:
        RuntimeError: if a request did not get exactly its max_tokens.
    """
    import torch

    for index, request in enumerate(options.workload["requests"]):
        if len(run.token_ids[index]) != request["max_tokens"]:
            message = (
                f"request {index} must get {request['max_tokens']} tokens, "
                f"{engine} gave {len(run.token_ids[index])}"
            )
            raise RuntimeError(message)
    num_inputs, num_outputs = num_tokens(options.workload)
    return ResultLine(
        engine=engine,
        version=run.version,
        model=options.model,
        workload=options.workload["name"],
        import_s=round(run.import_s, 2),
        init_s=round(run.init_s, 2),
        run_s=round(run.run_s, 3),
        input_tokens=num_inputs,
        output_tokens=num_outputs,
        output_tokens_per_s=round(num_outputs / run.run_s, 1),
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        threads=torch.get_num_threads(),
    )


def run_pagedkv(options: LegOptions) -> LegRun:
    """Runs pagedkv with its default settings unless `engine_args` says otherwise."""
    started = time.perf_counter()
    import pagedkv
    from pagedkv import LLM, SamplingParams

    imported = time.perf_counter()
    llm = LLM(
        options.model, skip_tokenizer_init=True, dtype=options.dtype, **options.engine_args
    )  # fmt: skip
    ready = time.perf_counter()
    requests = options.workload["requests"]

    def params(max_tokens: int) -> SamplingParams:
        return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)

    # Reversed, so that the warm-up leaves nothing in the prefix cache that the workload could use.
    warm_up = [{"prompt_token_ids": request["prompt_token_ids"][::-1]} for request in requests[:2]]
    llm.generate(warm_up, params(NUM_WARM_UP_TOKENS), use_tqdm=False)
    prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in requests]
    per_prompt = [params(request["max_tokens"]) for request in requests]
    begun = time.perf_counter()
    outputs = llm.generate(prompts, per_prompt, use_tqdm=False)
    ended = time.perf_counter()
    token_ids = [list(output.outputs[0].token_ids) for output in outputs]
    llm.close()
    return LegRun(
        version=pagedkv.__version__,
        import_s=imported - started,
        init_s=ready - imported,
        run_s=ended - begun,
        token_ids=token_ids,
    )


def run_hf_static(options: LegOptions) -> LegRun:
    """Runs transformers' generate on padded batches in the order of the file."""
    return run_hf(options, batch=options.batch)


def run_hf_sequential(options: LegOptions) -> LegRun:
    """Runs transformers' generate one request at a time."""
    return run_hf(options, batch=1)


def run_hf(options: LegOptions, *, batch: int) -> LegRun:
    """Runs transformers' generate; a batch runs until its longest request has all its tokens."""
    started = time.perf_counter()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype)
    ).eval()
    ready = time.perf_counter()
    requests = options.workload["requests"]
    with torch.inference_mode():
        hf_generate(model, [requests[0]["prompt_token_ids"]], num_new_tokens=NUM_WARM_UP_TOKENS)
        token_ids: list[list[int]] = []
        begun = time.perf_counter()
        for first in range(0, len(requests), batch):
            rows = requests[first : first + batch]
            generated = hf_generate(
                model,
                [row["prompt_token_ids"] for row in rows],
                num_new_tokens=max(row["max_tokens"] for row in rows),
            )
            token_ids += [
                ids[: row["max_tokens"]] for ids, row in zip(generated, rows, strict=True)
            ]
        ended = time.perf_counter()
    return LegRun(
        version=transformers.__version__,
        import_s=imported - started,
        init_s=ready - imported,
        run_s=ended - begun,
        token_ids=token_ids,
    )


def run_hf_continuous(options: LegOptions) -> LegRun:
    """Runs transformers' own continuous batching with a cache that holds every request."""
    started = time.perf_counter()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).eval()
    ready = time.perf_counter()
    requests = options.workload["requests"]
    lengths = [len(request["prompt_token_ids"]) + request["max_tokens"] for request in requests]
    num_pages = sum(-(-length // HF_PAGE_SIZE) for length in lengths) + HF_SPARE_PAGES
    generation = GenerationConfig(
        max_new_tokens=max(request["max_tokens"] for request in requests),
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    manager = model.init_continuous_batching(
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=num_pages, max_batch_tokens=HF_BATCH_TOKENS, page_size=HF_PAGE_SIZE
        ),
    )
    manager.start()
    warm_up = [(request["prompt_token_ids"][::-1], NUM_WARM_UP_TOKENS) for request in requests[:2]]
    hf_collect(manager, warm_up)
    begun = time.perf_counter()
    token_ids = hf_collect(
        manager, [(request["prompt_token_ids"], request["max_tokens"]) for request in requests]
    )
    ended = time.perf_counter()
    manager.stop(block=True)
    return LegRun(
        version=transformers.__version__,
        import_s=imported - started,
        init_s=ready - imported,
        run_s=ended - begun,
        token_ids=token_ids,
    )


def hf_collect(manager: Any, requests: list[tuple[list[int], int]]) -> list[list[int]]:
    """Adds (prompt, number of new tokens) pairs and waits for all of them, in order."""
    names = [f"{id(requests)}-{index}" for index in range(len(requests))]
    for name, (prompt, num_new_tokens) in zip(names, requests, strict=True):
        manager.add_request(prompt, request_id=name, max_new_tokens=num_new_tokens)
    found: dict[str, list[int]] = {}
    while len(found) < len(names):
        result = manager.get_result(timeout=HF_PATIENCE_S)
        if result is None:
            message = f"continuous batching gave no result for {HF_PATIENCE_S} seconds"
            raise RuntimeError(message)
        if result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    return [found[name] for name in names]


def hf_generate(model: Any, prompts: list[list[int]], *, num_new_tokens: int) -> list[list[int]]:
    """Returns exactly `num_new_tokens` greedy ids for each prompt, prompts padded on the left."""
    import torch

    pad_id = model.generation_config.pad_token_id or 0
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=num_new_tokens,
        min_new_tokens=num_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=pad_id,
    )
    generated: list[list[int]] = output[:, width:].tolist()
    return generated


LEGS: dict[str, Callable[[LegOptions], LegRun]] = {
    "pagedkv": run_pagedkv,
    "hf-static": run_hf_static,
    "hf-sequential": run_hf_sequential,
    "hf-continuous": run_hf_continuous,
}


if __name__ == "__main__":
    main()
