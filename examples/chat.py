"""A chat whose turns share one growing prompt: `python examples/chat.py [MODEL]`.

Each turn sends the whole conversation again. The prefix cache still has the blocks of the earlier
turns, so only what is new is computed: see the cached tokens that are printed.
"""

import sys

from pagedkv import LLM, SamplingParams


def main() -> None:
    """Asks four questions in one conversation and prints the answers."""
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    questions = [
        "Hello, my name is Emma.",
        "What is the capital of Italy?",
        "Tell me a story about a turtle.",
        "What is my name?",
    ]
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    with LLM(model) as llm:
        for question in questions:
            messages.append({"role": "user", "content": question})
            output = llm.chat(
                messages, SamplingParams(temperature=0, max_tokens=128), use_tqdm=False
            )[0]
            answer = output.outputs[0].text
            messages.append({"role": "assistant", "content": answer})
            print(f"> {question}\n{answer}\n")
            num_prompt_tokens = len(output.prompt_token_ids)
            print(
                f"  ({output.num_cached_tokens} of {num_prompt_tokens} prompt tokens were cached)"
            )


if __name__ == "__main__":
    main()
