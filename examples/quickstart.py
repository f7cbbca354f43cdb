"""Record a conversation: a decorator, a with-block and a thread.

Run it with `python examples/quickstart.py`, then look at what was recorded with `stepwell ls`.
"""

import stepwell as sw


@sw.tool
def depth_of(place: str) -> int:
    return {"Chand Baori": 20, "Rani ki Vav": 28}[place]


@sw.run
def guide(question: str, place: str) -> str:
    depth = depth_of(place)
    with sw.llm("answer", model="local", messages=[{"role": "user", "content": question}]) as step:
        answer = f"{place} is about {depth} metres deep."  # here you would call a model
        step.record(answer)
    return answer


with sw.thread(name="Stepwells", user="ada") as thread:
    sw.user_message("How deep is Rani ki Vav?")
    answer = guide("How deep is Rani ki Vav?", "Rani ki Vav")
    sw.assistant_message(answer)

print(answer)
print("thread", thread.id, "delivered:", sw.flush())
