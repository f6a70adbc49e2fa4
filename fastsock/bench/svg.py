"""Make matplotlib's SVG small, and readable on a phone, in light and in dark.

What a reader sees stays; what goes: clip paths, metadata, digits, and groups and ids that are never
used. Colours become classes of one style sheet, which follows ``prefers-color-scheme``. Text keeps
its size and takes the reader's own sans-serif font.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

#: Name, in light, in dark. The colours of lines are those of Okabe and Ito, which colour-blind
#: readers can tell apart; in dark they are lighter.
COLOURS = {
    "plate": ("#ffffff", "#1a1c1e"),
    "ink": ("#1a1a1a", "#e8e8e8"),
    "grey": ("#767676", "#a0a0a0"),
    "pale": ("#b0b0b0", "#6c6c6c"),
    "grid": ("#e6e6e6", "#3a3d40"),
    "blue": ("#0072b2", "#4aa8e0"),
    "sky": ("#56b4e9", "#9ad7f7"),
    "green": ("#009e73", "#2fc79a"),
    "orange": ("#e69f00", "#f2b544"),
    "vermilion": ("#d55e00", "#ff8a4a"),
    "purple": ("#cc79a7", "#e0a0c4"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}

_NAMES = {light: name for name, light in LIGHT.items()}
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
#: What a style keeps beside its colours, each as an attribute.
_KEPT = ("font-size", "font-weight", "text-anchor", "stroke-width", "stroke-dasharray")
#: Units of the picture to the pixels of a wide page; a narrow one shrinks it to its own width.
_ENLARGED = 4 / 3


def readable(drawn: str, title: str, text: str) -> str:
    """`drawn` by matplotlib, with a title and a description for screen readers."""
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(f"{{{_SVG}}}") in ("metadata", "style", "clipPath"):
                parent.remove(child)
    used = {each.get(_HREF, "")[1:] for each in root.iter()}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.text, element.tail = (element.text or "").strip(), None
        plain(element, used)
    children = [each for child in root for each in flat(child)]
    width, height = (float(each) for each in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "xmlns": _SVG,
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width * _ENLARGED:.0f}",
        "height": f"{height * _ENLARGED:.0f}",
        "role": "img",
    }
    for child in list(root):
        root.remove(child)
    for name, content in (("title", title), ("desc", text), ("style", sheet())):
        ElementTree.SubElement(root, name).text = content
    root.extend(children)
    for child in root:
        child.tail = "\n"
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def plain(element: Element, used: set[str]) -> None:
    """Short attributes instead of a style; an id only where it is used, or names a server."""
    get = element.attrib.pop
    name, href = get("id", ""), get(_HREF, "")
    get("clip-path", None)
    if element.tag == "text":
        get("transform", None)  # a rotation by 0; no text is turned
    for key, value in element.attrib.items():
        if key in ("d", "x", "y", "transform"):
            element.set(key, shorter(value))
    if ": " in name or (name and name in used):
        element.set("id", name)
    if href:
        element.set("href", href)
    style = dict(part.split(": ", 1) for part in get("style", "").split("; ") if part)
    classes = [
        f"{letter}-{_NAMES[style[key].rstrip(';')]}"
        for key, letter in (("fill", "f"), ("stroke", "s"))
        if style.get(key, "").rstrip(";") in _NAMES
    ]
    if style.get("fill") == "none":
        classes.append("f-none")
    if classes:
        element.set("class", " ".join(classes))
    for key in _KEPT:
        if key in style and style[key] not in ("start", "400"):
            element.set(key, shorter(style[key].rstrip(";").removesuffix("px")))


def shorter(text: str) -> str:
    """With one digit after the point, and none that is 0; in one line."""
    return " ".join(_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", text).split()).replace(
        ".0", ""
    )


def flat(element: Element) -> Iterator[Element]:
    """The elements of groups without attributes, and nothing of empty ones."""
    inside = [each for child in element for each in flat(child)]
    for child in list(element):
        element.remove(child)
    element.extend(inside)
    if element.tag == "path" and element.get("class") in ("f-none", None):
        return  # a background without a colour
    if element.tag != "g":
        if element.tag != "defs" or inside:
            yield element
    elif not element.attrib:
        yield from inside
    elif inside:
        if len(inside) == 1 and "id" not in inside[0].attrib:
            inside[0].attrib |= element.attrib
            yield inside[0]
        else:
            yield element


def sheet() -> str:
    """The style sheet: light, and dark where the reader's system is dark."""
    light = "".join(rules(name, light) for name, (light, _) in COLOURS.items())
    dark = "".join(rules(name, dark) for name, (_, dark) in COLOURS.items())
    return (
        f"text{{font-family:system-ui,sans-serif}}.f-none{{fill:none}}{light}"
        f"@media(prefers-color-scheme:dark){{{dark}}}"
    )


def rules(name: str, colour: str) -> str:
    return f".f-{name}{{fill:{colour}}}.s-{name}{{stroke:{colour}}}"
