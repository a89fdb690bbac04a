"""Keywords in XMP sidecars: `dc:subject`, and the hierarchy of Lightroom, `lr:hierarchicalSubject`.

A sidecar is edited where its keywords stand; every other byte stays, so that what Lightroom, darktable and others have
written is read by them as before. Source: XMP specification part 1 (ISO 16684-1), and the namespace
http://ns.adobe.com/lightroom/1.0/.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"

_PROPERTIES = {"flat": (_DC, "subject", "dc"), "hierarchical": (_LR, "hierarchicalSubject", "lr")}
_CONTAINERS = {f"{_RDF} {name}" for name in ("Bag", "Seq", "Alt")}
_TAG = re.compile(rb"""<[^>"']*(?:"[^"]*"[^>"']*|'[^']*'[^>"']*)*>""")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Keywords:
    """What an image is about."""

    flat: tuple[str, ...] = ()
    """Words of `dc:subject`."""

    hierarchical: tuple[str, ...] = ()
    """Paths of `lr:hierarchicalSubject`, from the widest word to the narrowest, joined by "|"."""

    def __bool__(self) -> bool:
        return bool(self.flat or self.hierarchical)


@dataclass
class _Element:
    """An element, by the bytes that it is made of."""

    name: str
    """Namespace and local name."""

    prefix: str
    start: int
    inside: int
    """Behind its start tag."""

    empty: bool
    """Whether it is one tag alone."""

    end: int = 0
    """Of the start of its end tag; behind the tag where it is one."""

    after: int = 0
    """Behind its end tag."""

    text: str = ""
    children: "list[_Element]" = field(default_factory=list)


def keywords_of(data: bytes) -> Keywords:
    """The keywords of a sidecar. Raises ValueError where it is none."""
    rdf = _parsed(data)
    found = {}
    for kind, (space, local, _) in _PROPERTIES.items():
        container = _container(_property(rdf, space, local), local)
        found[kind] = () if container is None else tuple(li.text for li in container.children)
    return Keywords(**found)


def with_keywords(data: bytes | None, keywords: Keywords) -> bytes:
    """A sidecar with keywords beside those that it has; None: a new one. Raises ValueError where it is no sidecar."""
    if data is None:
        data = _EMPTY
    for kind, words in (("flat", keywords.flat), ("hierarchical", keywords.hierarchical)):
        rdf = _parsed(data)
        space, local, prefix = _PROPERTIES[kind]
        there = _property(rdf, space, local)
        container = _container(there, local)
        held = {li.text for li in container.children} if container is not None else set()
        new = [word for word in dict.fromkeys(map(_plain, words)) if word and word not in held]
        if new:
            data = _inserted(data, rdf, there, container, new, f'{prefix}:{local} xmlns:{prefix}="{space}"')
    return data


def without_keywords(data: bytes, keywords: Keywords) -> bytes:
    """A sidecar without these keywords. Raises ValueError where it is no sidecar."""
    for kind, words in (("flat", keywords.flat), ("hierarchical", keywords.hierarchical)):
        rdf = _parsed(data)
        space, local, _ = _PROPERTIES[kind]
        there = _property(rdf, space, local)
        container = _container(there, local)
        if there is None or container is None:
            continue
        unwanted = set(map(_plain, words))
        gone = [li for li in container.children if li.text in unwanted]
        spans = [there] if gone and len(gone) == len(container.children) else gone
        for element in reversed(spans):
            before = data[: element.start].rstrip(b" \t\r\n") if element is not there else data[: element.start]
            data = before + data[element.after :]
    return data


_EMPTY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Segment Archive">\n <rdf:RDF xmlns:rdf="{_RDF}">\n'
    '  <rdf:Description rdf:about="">\n  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n'
).encode()


def _plain(word: str) -> str:
    """A word as a sidecar can hold it: without what XML has no place for, blanks as one."""
    return " ".join(_NOT_XML.sub("", word).split())


def _inserted(
    data: bytes, rdf: _Element, there: _Element | None, container: _Element | None, words: list[str], tag: str
) -> bytes:
    r = f"{rdf.prefix}:" if rdf.prefix else ""
    items = "".join(f"\n     <{r}li>{escape(word)}</{r}li>" for word in words)
    if container is not None and not container.empty:
        at = len(data[: container.end].rstrip(b" \t\r\n"))
        at = max(at, container.inside)
        return data[:at] + items.encode() + data[at:]
    bag = f"<{r}Bag>{items}\n    </{r}Bag>"
    if container is not None:
        return data[: container.start] + bag.encode() + data[container.after :]
    whole = f"<{tag}>\n    {bag}\n   </{tag.partition(' ')[0]}>"
    if there is not None:
        return data[: there.start] + whole.encode() + data[there.after :]
    about = next((e for e in rdf.children if e.name == f"{_RDF} Description"), None)
    if about is None:
        described = f'\n  <{r}Description {r}about="">\n   {whole}\n  </{r}Description>'
        if rdf.empty:
            return _opened(data, rdf, described)
        return data[: rdf.inside] + described.encode() + data[rdf.inside :]
    if about.empty:
        return _opened(data, about, f"\n   {whole}\n  ")
    at = max(len(data[: about.end].rstrip(b" \t\r\n")), about.inside)
    return data[:at] + f"\n   {whole}".encode() + data[at:]


def _opened(data: bytes, element: _Element, content: str) -> bytes:
    """An element that is one tag alone, with content in it."""
    tag = data[element.start : element.after]
    name = re.match(rb"<([^\s/>]+)", tag)
    assert name is not None
    inner = tag[:-2].rstrip() + b">" + content.encode() + b"</" + name[1] + b">"
    return data[: element.start] + inner + data[element.after :]


def _property(rdf: _Element, space: str, local: str) -> _Element | None:
    descriptions = [element for element in rdf.children if element.name == f"{_RDF} Description"]
    found = (e for about in descriptions for e in about.children if e.name == f"{space} {local}")
    return next(found, None)


def _container(there: _Element | None, local: str) -> _Element | None:
    """The list in a property; None where there is none yet."""
    if there is None:
        return None
    container = next((element for element in there.children if element.name in _CONTAINERS), None)
    if container is None and (there.children or there.text.strip()):
        raise ValueError(f"its {local} is no list")
    return container


def _parsed(data: bytes) -> _Element:
    """The element rdf:RDF with all that is in it, by the bytes that each is made of."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.namespace_prefixes = True
    parser.buffer_text = True
    open_elements: list[_Element] = []
    found: list[_Element] = []
    depth = 0

    def start(full: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        space, local, prefix = (*full.split(" "), "", "")[:3]
        if not local:
            space, local = "", space
        name = f"{space} {local}"
        at = parser.CurrentByteIndex
        if not open_elements and (found or name != f"{_RDF} RDF"):
            return
        if name == f"{_RDF} Description":
            short = next((a for a in attributes if a.startswith((f"{_DC} subject", f"{_LR} hierarchical"))), None)
            if short is not None:
                raise ValueError(f"its {short.split(' ')[1]} is an attribute, no list")
        tag = _TAG.match(data, at)
        if tag is None:
            raise ValueError("it is no sound XML")
        element = _Element(name, prefix, at, tag.end(), data[: tag.end()].endswith(b"/>"))
        if open_elements:
            open_elements[-1].children.append(element)
        else:
            found.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1
        if not open_elements:
            return
        element = open_elements.pop()
        if element.empty:
            element.end = element.after = element.inside
        else:
            element.end = parser.CurrentByteIndex
            element.after = data.index(b">", element.end) + 1

    def text(characters: str) -> None:
        if open_elements:
            open_elements[-1].text += characters

    def declared(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
            raise ValueError(f"it is in {encoding}, not in UTF-8")

    def doctype(*_: Any) -> None:
        raise ValueError("it declares a document type, which no sidecar does, and is not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.XmlDeclHandler, parser.StartDoctypeDeclHandler = text, declared, doctype
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:4].count(b"\0"):
        raise ValueError("it is in UTF-16, not in UTF-8")
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no sound XML ({error})") from None
    if not found:
        raise ValueError("it holds no rdf:RDF")
    return found[0]


def joined(keywords: Iterable[Keywords]) -> Keywords:
    """The keywords of all, each once."""
    every = list(keywords)
    return Keywords(
        tuple(dict.fromkeys(word for k in every for word in k.flat)),
        tuple(dict.fromkeys(word for k in every for word in k.hierarchical)),
    )
