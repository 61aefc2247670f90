"""Several prompts at once: `python examples/offline_generate.py [MODEL]`."""

import sys

from pagedkv import LLM, SamplingParams


def main() -> None:
    """Generates a continuation for each prompt and prints them."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    prompts = ["Once upon a time", "The capital of Japan is", "Tell me a story about a fox."]
    params = SamplingParams(temperature=0.8, max_tokens=48, seed=0)
    with LLM(model) as llm:
        for output in llm.generate(prompts, params):
            completion = output.outputs[0]
            print(f"{output.prompt!r} -> {completion.text!r} ({completion.finish_reason})")


if __name__ == "__main__":
    main()
