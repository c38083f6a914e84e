"""The process in which chat templates run: requests on stdin, rendered texts on stdout.

A template is a stranger's program. The sandbox of jinja2 keeps it from Python's insides; memory and
CPU time are bounded here by the kernel; the wall clock is `swarmd.text.chat`'s, which starts this
file by its path, so it imports nothing of swarmd.

A frame is a big-endian uint32 length and that many bytes of JSON. The first frame holds the limits,
each later one a request; every request gets one answer, `{"text": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import IO, Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

HEADER = struct.Struct(">I")
MAX_FRAME_BYTES = 64 << 20
_MAX_ERROR_CHARS = 500
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def main() -> None:
    """Answer requests until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    limits = read_frame(source)
    if limits is None:
        return
    _limit_process(limits["memory_bytes"])
    while (request := read_frame(source)) is not None:
        _limit_cpu(limits["cpu_s"])
        answer = _answer(request, limits["output_bytes"])
        write_frame(sink, json.dumps(answer).encode())
        if answer.get("fatal"):
            return  # after running out of memory or stack: the next one gets a fresh process


def read_frame(source: IO[bytes]) -> Any:
    """Return the next frame's value, or None at the end. Raises ValueError when it is malformed."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes, at most {MAX_FRAME_BYTES} are allowed")
    data = source.read(size)
    return json.loads(data) if len(data) == size else None


def write_frame(sink: IO[bytes], data: bytes) -> None:
    """Write one frame, whose JSON is given as bytes, and flush."""
    sink.write(HEADER.pack(len(data)) + data)
    sink.flush()


def _answer(request: dict[str, Any], output_bytes: int) -> dict[str, Any]:
    try:
        text = _render(request)
        size = len(text.encode(errors="surrogatepass"))
        if size > output_bytes:
            return _error(f"the rendered chat has {size} bytes, at most {output_bytes} are allowed")
        return {"text": text}
    except (MemoryError, RecursionError) as error:
        kind = "memory" if isinstance(error, MemoryError) else "recursion"
        return _error(f"the template exceeds its {kind} limit") | {"fatal": True}
    except jinja2.TemplateSyntaxError as error:
        return _error(f"line {error.lineno} of the template: {error.message}")
    except jinja2.TemplateError as error:
        return _error(str(error.message or type(error).__name__))
    except Exception as error:  # whatever the template's own expressions raise: type errors, ...
        return _error(f"{type(error).__name__}: {error}")


def _error(message: str) -> dict[str, Any]:
    return {"error": message[:_MAX_ERROR_CHARS]}


def _render(request: dict[str, Any]) -> str:
    messages = [_with_reasoning(message) for message in request["messages"]]
    return _compile(request["template"]).render(**request["variables"] | {"messages": messages})


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Give a message's reasoning under all the names that templates read, as transformers does."""
    named = (message[name] for name in _REASONING_FIELDS if message.get(name) is not None)
    reasoning = next(named, None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """Compile with the helpers and settings for which chat templates are written."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model writes; it renders as is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` for templates without the class itself, whose attributes lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` that refuses underscored names: jinja2 would set them unchecked."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes HTML characters, which a model has never seen.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _limit_process(memory_bytes: int) -> None:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    except (OSError, ValueError):
        # macOS cannot bound the address space; the limits of CPU and wall clock remain there.
        if sys.platform == "linux":
            raise
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))


def _limit_cpu(seconds: int) -> None:
    """Allow this many more seconds of CPU; then the kernel ends the process, parent or not."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
