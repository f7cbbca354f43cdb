"""The public verbs that record: run, tool, llm ... as decorator and context manager in one, start, and messages.

What must stay true:

1. A decorated call returns what the function returns and raises what it raises, with no frame of ours in the
   traceback; nothing that fails in here changes that.
2. What is wrong where it is written (a type, a tag, a name) raises `UsageError` there.
3. The sync and async forms differ in `await` alone; everything else is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partialmethod
from typing import Any, Final, TypeVar, cast, get_args, overload

from stepwell._checks import checked_flag, checked_name, checked_parameters, checked_tags, shown
from stepwell._context import current_step, current_thread
from stepwell._decorating import DESCRIPTORS, decorate
from stepwell._details import Attachment
from stepwell._recorder import RECORDER
from stepwell._step import STEP_OPTIONS, Step
from stepwell._thread import Thread, in_thread
from stepwell._values import is_text
from stepwell._vocabulary import STEP_TYPES, StepType
from stepwell.errors import UsageError

__all__ = [
    "ModelStepKind",
    "Recording",
    "StepKind",
    "assistant_message",
    "embedding",
    "llm",
    "rerank",
    "retrieval",
    "run",
    "start",
    "step",
    "system_message",
    "tool",
    "user_message",
]

F = TypeVar("F", bound=Callable[..., Any])
D = TypeVar("D", bound="property | cached_property[Any] | partialmethod[Any]")
MAX_ATTACHMENTS: Final = 1000  # of one message
_MODEL_TYPES: Final = frozenset({"llm", "embedding", "rerank"})


class Recording:
    """One way to record a step: use it as a decorator, or in `with` / `async with`, which gives the `Step`."""

    __slots__ = ("_steps", "name", "options", "type")

    def __init__(self, type_: str, name: str | None, options: dict[str, Any]) -> None:
        self.type = type_
        self.name = name
        self.options = options
        self._steps: list[Step] = []  # more than one when the same object is entered again before it is left

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(self, descriptor: D, /) -> D: ...
    def __call__(self, function: Any, /) -> Any:
        """Decorate a function, or the descriptor of one: every call is a step."""
        return decorate(function, self)

    def __enter__(self) -> Step:
        step = self.open(self.type)
        self._steps.append(step)
        return step

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        (self._steps.pop() if len(self._steps) == 1 else self._innermost()).leave(error)

    async def __aenter__(self) -> Step:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        self.__exit__(kind, error, frames)

    def _innermost(self) -> Step:
        """Take out the step that was entered here, where other tasks or threads have entered the same object."""
        step = current_step()
        while step is not None:
            if any(step is entered for entered in self._steps):
                self._steps.remove(step)
                return step
            step = step.enclosing
        return self._steps.pop()

    def open(self, name: str) -> Step:
        """Open a step now and make it current; `name` is used where the recording has none."""
        step = Step.begin(self.type, self.name or name)
        if self.options:
            try:
                self._fill(step)
            except BaseException as error:  # a Ctrl-C while it runs the program's code: the block is not entered
                step.leave(error)
                raise
        return step

    def _fill(self, step: Step) -> None:
        """Set what the options say on a step that has just begun."""
        options = self.options
        try:
            if self.type in _MODEL_TYPES:
                step.ask(options)
            if options.get("tags"):
                step.tags = options["tags"]
            if "input" in options:
                step.input = options["input"]
            if options.get("metadata") is not None:
                step.metadata = options["metadata"]
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("record a step", error)


class StepKind:
    """Records steps of one type: `@kind`, `@kind("name", ...)`, `with kind("name", ...) as step`."""

    def __init__(self, type_: StepType, doc: str) -> None:
        self._type: StepType = type_
        self.__doc__ = doc

    def __repr__(self) -> str:
        return f"<stepwell.{self._type}>"

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(self, descriptor: D, /) -> D: ...
    @overload
    def __call__(
        self,
        name: str | None = None,
        /,
        *,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        input: object = ...,
        capture_input: bool | Sequence[str] | None = None,
        capture_output: bool | None = None,
    ) -> Recording: ...
    def __call__(self, name: Any = None, /, **options: Any) -> Any:
        """Decorate a function, or make a `Recording`.

        `tags` and `metadata` go on every step. `capture_input` is True, False or the names of the parameters to
        capture, `capture_output` True or False; the default is the recorder's setting. `input` is for with-blocks.
        """
        if unknown := options.keys() - STEP_OPTIONS:
            raise TypeError(f"{self._type}() has no option {', '.join(sorted(unknown))}")
        return _recording(self._type, name, options)


class ModelStepKind(StepKind):
    """Records calls of a model: what `StepKind` takes, and what was asked of the model."""

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(self, descriptor: D, /) -> D: ...
    @overload
    def __call__(
        self,
        name: str | None = None,
        /,
        *,
        model: str | None = None,
        provider: str | None = None,
        messages: Sequence[Any] | None = None,
        prompt: Any = None,
        tools: Sequence[Any] | None = None,
        tags: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        input: object = ...,
        capture_input: bool | Sequence[str] | None = None,
        capture_output: bool | None = None,
        **settings: Any,
    ) -> Recording: ...
    def __call__(self, name: Any = None, /, **options: Any) -> Any:
        """Decorate a function, or make a `Recording`.

        `messages` or `prompt` is what the model is asked, captured as it is when the step opens; any further keyword
        (`temperature=0`) is a setting of the call. The parameters `messages`, `prompt` and `model` of a decorated
        function are taken from its arguments.
        """
        return _recording(self._type, name, options)


def _recording(type_: StepType, name: Any, options: dict[str, Any]) -> Any:
    if "tags" in options:
        options["tags"] = checked_tags(options["tags"])
    if "capture_input" in options:
        options["capture_input"] = checked_parameters(options["capture_input"])
    if "capture_output" in options:
        checked_flag(options["capture_output"], "capture_output")
    if name is None or is_text(name):
        return Recording(type_, None if name is None else str.__str__(name), options)
    function: Any = name
    if not callable(name) and not issubclass(type(name), DESCRIPTORS):
        raise UsageError(f"the name of a {type_} step must be a string, got {shown(name)}")
    return decorate(function, Recording(type_, None, options))


run: Final = StepKind("run", "Record a run: one execution of an agent, chain or task, with the steps below it.")
tool: Final = StepKind("tool", "Record a tool call.")
retrieval: Final = StepKind("retrieval", "Record a retrieval: a query in, documents out.")
llm: Final = ModelStepKind("llm", "Record a call of a language model; without messages or prompt it becomes a run.")
embedding: Final = ModelStepKind("embedding", "Record a call of an embedding model.")
rerank: Final = ModelStepKind("rerank", "Record a call of a reranking model.")


def step(name: str | None = None, /, *, type: StepType = "undefined", **options: Any) -> Recording:
    """Record a step of any type: `@sw.step(type="tool")`, `with sw.step("name", type="run") as step`.

    `options` are those of the type's own verb. Raises `UsageError` for a type there is not.
    """
    kind = _KINDS.get(str.__str__(type)) if is_text(type) else None
    if kind is None:
        raise UsageError(f"type must be one of {', '.join(get_args(StepType))}, got {shown(type)}")
    if name is not None and not is_text(name):
        raise UsageError(f"step() takes a name, then decorates: use @step(type=...), got {shown(name)}")
    return kind(name, **options)


_KINDS: Final[dict[str, StepKind]] = {
    **{str(kind): StepKind(cast("StepType", kind), f"Record a step of type {kind}.") for kind in STEP_TYPES},
    "run": run,
    "tool": tool,
    "retrieval": retrieval,
    "llm": llm,
    "embedding": embedding,
    "rerank": rerank,
}


def start(type: StepType, name: str | None = None, /, **options: Any) -> Step:
    """Open a step by hand and make it current; call its `end()`, in the same task or thread.

    Raises `UsageError` for a type there is not.
    """
    recording = step(name, type=type, **options)
    return recording.open(recording.type)


def user_message(content: Any, **options: Any) -> Step:
    """Record what a user said. `options`: `name`, `attachments` (see `attach`), `tags`, `metadata`."""
    return _message("user_message", content, **options)


def assistant_message(content: Any, **options: Any) -> Step:
    """Record what the assistant answered. `options` as for `user_message`."""
    return _message("assistant_message", content, **options)


def system_message(content: Any, **options: Any) -> Step:
    """Record an instruction or notice of the application. `options` as for `user_message`."""
    return _message("system_message", content, **options)


def _message(
    type_: str,
    content: Any,
    *,
    name: str | None = None,
    attachments: Sequence[Attachment] | None = None,
    tags: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Step:
    if name is not None:
        name = checked_name(name, "message")
    recording = Recording(type_, name, {"tags": checked_tags(tags), "metadata": metadata})
    if not RECORDER.is_on():
        return recording.open(type_)
    if current_step() is None and current_thread() is None:
        RECORDER.misuse(f"a {type_} was recorded outside of any thread or step, and got a thread of its own")
        with in_thread(Thread(RECORDER)):
            step = recording.open(type_)
    else:
        step = recording.open(type_)
    try:
        for attachment in _listed(attachments):
            step.add_attachment(attachment)
    finally:
        step.said(content)
    return step


def _listed(attachments: Sequence[Attachment] | None) -> Sequence[Attachment]:
    if attachments is None:
        return ()
    if issubclass(type(attachments), list | tuple):
        base: Any = list if issubclass(type(attachments), list) else tuple
        if base.__len__(attachments) > MAX_ATTACHMENTS:
            RECORDER.misuse(f"a message has at most {MAX_ATTACHMENTS} attachments, the others are left out")
        return cast("Sequence[Attachment]", base.__getitem__(attachments, slice(MAX_ATTACHMENTS)))
    RECORDER.misuse(f"attachments must be a list, got {shown(attachments)}")
    return ()
