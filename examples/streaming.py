"""Text as it appears: `python examples/streaming.py [PROMPT]`."""

import sys

from pagedkv import LLM, SamplingParams


def main() -> None:
    """Prints a story piece by piece."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else "Once upon a time"
    with LLM("demo") as llm:
        print(prompt, end="", flush=True)
        # Leaving this loop early would end the request and free its blocks.
        for delta in llm.stream(prompt, SamplingParams(temperature=0.8, max_tokens=120)):
            print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
