"""ComfyUI's execution graph, read as data: find the sampler, then walk up to texts, model, size, seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .recovered import BrokenMetadata, Recovered, number, text, whole

MAX_NODES = 10_000

TEXTS = ("text", "prompt", "text_g", "text_l", "clip_l", "t5xxl", "string", "value")
MODELS = ("ckpt_name", "unet_name", "model_name", "diffusion_model")
SEEDS = ("seed", "noise_seed")

T = TypeVar("T")
Convert = Callable[[object], T | None]
Graph = dict[str, dict[str, Any]]


def read_graph(source: dict[str, Any]) -> Recovered:
    """Fields of the last sampler in the graph. Cycles, missing nodes and odd types are passed by."""
    graph = _nodes(source)
    sampler = _sampler(graph)
    if sampler is None:
        return Recovered("comfyui", unmapped={"nodes": sorted({_class(node) for node in graph.values()})})
    node = graph[sampler]
    guider = _linked(graph, node["inputs"].get("guider")) or sampler
    texts = graph[guider]["inputs"]
    positive = texts.get("positive", texts.get("conditioning"))
    return Recovered(
        "comfyui",
        prompt=_upstream(graph, positive, TEXTS, text),
        negative=_upstream(graph, texts.get("negative"), TEXTS, text),
        model=_anywhere(graph, sampler, MODELS, text),
        sampler=_anywhere(graph, sampler, ("sampler_name",), text),
        schedule=_anywhere(graph, sampler, ("scheduler",), text),
        steps=_anywhere(graph, sampler, ("steps",), whole),
        guidance=_anywhere(graph, guider, ("cfg", "guidance"), number),
        seed=_anywhere(graph, sampler, SEEDS, whole),
        width=_upstream(graph, node["inputs"].get("latent_image"), ("width",), whole),
        height=_upstream(graph, node["inputs"].get("latent_image"), ("height",), whole),
        unmapped={"nodes": sorted({_class(other) for other in graph.values()})},
    )


def _nodes(source: dict[str, Any]) -> Graph:
    if len(source) > MAX_NODES:
        raise BrokenMetadata(f"ComfyUI's graph has {len(source)} nodes, more than {MAX_NODES}")
    graph = {}
    for key, node in source.items():
        if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
            raise BrokenMetadata(f"node {key[:40]!r} of ComfyUI's graph has no inputs")
        graph[key] = node
    return graph


def _sampler(graph: Graph) -> str | None:
    """The sampler whose result no other sampler starts from; the last of them if there are several."""
    samplers = {
        key: node["inputs"]["latent_image"]
        for key, node in graph.items()
        if "latent_image" in node["inputs"] and "sampler" in _class(node).lower()
    }
    earlier = set(_walk(graph, *samplers.values()))
    last = [key for key in samplers if key not in earlier] or list(samplers)
    return last[-1] if last else None


def _class(node: dict[str, Any]) -> str:
    return str(node.get("class_type", "?"))[:100]


def _linked(graph: Graph, value: object) -> str | None:
    """The node an input is linked to: ComfyUI writes [node id, output number]."""
    if (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and str(value[0]) in graph
    ):
        return str(value[0])
    return None


def _walk(graph: Graph, *links: object) -> Iterator[str]:
    """Nodes upstream of the links, nearest first, each once."""
    starts = [_linked(graph, link) for link in links]
    queue = deque(dict.fromkeys(start for start in starts if start is not None))
    seen = set(queue)
    while queue:
        key = queue.popleft()
        yield key
        for value in graph[key]["inputs"].values():
            up = _linked(graph, value)
            if up is not None and up not in seen:
                seen.add(up)
                queue.append(up)


def _upstream(
    graph: Graph, link: object, names: tuple[str, ...], convert: Callable[[object], T | None]
) -> T | None:
    for key in _walk(graph, link):
        found = _own(graph[key], names, convert)
        if found is not None:
            return found
    return None


def _anywhere(
    graph: Graph, key: str, names: tuple[str, ...], convert: Callable[[object], T | None]
) -> T | None:
    """In the node itself, or upstream of it."""
    found = _own(graph[key], names, convert)
    return found if found is not None else _upstream(graph, [key, 0], names, convert)


def _own(node: dict[str, Any], names: tuple[str, ...], convert: Convert[T]) -> T | None:
    for name in names:
        found = convert(node["inputs"].get(name))
        if found is not None:
            return found
    return None
