"""Five continuations of one prompt, whose blocks are held once: `python examples/parallel_sampling.py`."""

import sys

from pagedkv import LLM, SamplingParams


def main() -> None:
    """Samples five stories from one prompt and prints them with the use of the KV cache."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    params = SamplingParams(n=5, temperature=0.9, max_tokens=60, seed=7)
    with LLM(model) as llm:
        output = llm.generate("Tell me a story about a brave lion.", params, use_tqdm=False)[0]
        for completion in output.outputs:
            print(f"{completion.index}: {completion.text.strip()}\n")
        for name, value in llm.stats().items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
