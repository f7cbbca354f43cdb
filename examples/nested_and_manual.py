"""Steps opened and ended by hand, what can be said about them, sampling, and strict mode.

Run it with `python examples/nested_and_manual.py`, then look at the steps with `stepwell ls`.
"""

import stepwell as sw
from stepwell.errors import UsageError


def summarise(text: str) -> str:
    """Say something about the step of the caller, without being given it."""
    step = sw.current_step()
    if step is not None:
        step.tags.append("short" if len(text) < 100 else "long")
    return text.partition(".")[0]


def by_hand() -> None:
    """Use start() and end() where beginning and end of the work are in different places, such as callbacks."""
    job = sw.start("run", "nightly", tags=["batch"], metadata={"host": "worker-1"})
    call = sw.start("llm", "summary", model="local", messages=[{"role": "user", "content": "Summarise the log."}])
    text = summarise("All jobs finished. Nothing else happened.")
    call.record(text)
    call.usage(input_tokens=5, output_tokens=3)
    call.end()
    check = sw.start("tool", "check")
    check.fail("the log has no date")  # a failure without an exception
    check.end()
    job.metadata["lines"] = 1
    job.output = text
    job.end()
    print(f"{job.name}: {job.status}, {call.name}: {call.status} {call.tags}, {check.name}: {check.status}")
    print("nested:", job.id == call.parent_id == check.parent_id == call.root_run_id)


def sampled() -> None:
    """Keep a share of the traces: 0.0 keeps none, and the steps of such a trace cost next to nothing."""
    sw.configure(sample=0.0)
    with sw.run("not kept") as step:
        print("recording:", step.is_recording())


def strict() -> None:
    """Raise on wrong use, which is otherwise put right and logged: for development and tests."""
    sw.configure(strict=True)
    try:
        sw.user_message("I belong to no thread")
    except UsageError as error:
        print("strict:", error)


if __name__ == "__main__":
    by_hand()
    sampled()
    strict()
    print("delivered:", sw.flush())
