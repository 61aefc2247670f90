"""An engine loop of one's own, where requests arrive while others run: `python examples/own_loop.py`."""

from pagedkv import LLMEngine, SamplingParams


def main() -> None:
    """Adds a request every few steps and prints each when it is finished."""
    arrivals = ["Once upon a time", "Tell me a story about Ben.", "One windy day, Lily went to"]
    params = SamplingParams(temperature=0.8, max_tokens=50, seed=1)
    engine = LLMEngine("demo")
    step = 0
    while arrivals or engine.has_unfinished_requests():
        if arrivals and step % 10 == 0:
            engine.add_request(f"request-{step}", arrivals.pop(0), params)
        for output in engine.step():
            if output.finished:
                print(f"step {step}: {output.request_id}: {output.prompt}{output.outputs[0].text}")
        step += 1
    engine.close()


if __name__ == "__main__":
    main()
