"""A chat with files, and what people and programs thought of its answers.

Attachments come from a path, from bytes, or from a URL, which is kept as it is and not fetched. Files are copied to the
blobs folder under the hash of their content. A score judges a step while it is open or later, by its id; feedback is a
user's thumbs up or down.

Run it with `python examples/chat_with_attachments.py`, then look at the thread with `stepwell ls`.
"""

import csv
import io
from pathlib import Path

import stepwell as sw

DEPTHS = "name,depth_m\nChand Baori,20\nRani ki Vav,28\nAgrasen ki Baoli,15\n"


@sw.run
def analyst(question: str, table: bytes) -> sw.Step:
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    messages = [{"role": "user", "content": f"{question}\n\n{table.decode()}"}]
    with sw.llm("answer", model="local", messages=messages) as step:
        deepest = max(rows, key=lambda row: int(row["depth_m"]))
        answer = f"{deepest['name']} is the deepest, {deepest['depth_m']} metres."
        step.record(answer)
        step.score("mentions a number", 1.0 if any(map(str.isdigit, answer)) else 0.0)
    message = sw.assistant_message(answer)
    message.attach(answer.encode(), name="answer.txt")
    return message


if __name__ == "__main__":
    question = "Which of these is the deepest?"
    with sw.thread("stepwells-of-india", name="Stepwells", user="ada", tags=["demo"], metadata={"channel": "web"}):
        sw.system_message("Answer from the table.")
        sw.user_message(
            question,
            attachments=[
                sw.attach(Path(__file__)),
                sw.attach(DEPTHS.encode(), name="depths.csv"),
                sw.attach("https://example.org/chand-baori.jpg", mime="image/jpeg"),
            ],
        )
        answer = analyst(question, DEPTHS.encode())

    # Later, when the user has clicked, the id of the message is all it takes.
    sw.feedback(answer.id, "positive", comment="short and right")
    sw.score(answer.id, "helpfulness", 0.9, type="AI", comment="judged by another model")
    print(answer.output["content"])
    print("thread", answer.thread_id, "delivered:", sw.flush())
