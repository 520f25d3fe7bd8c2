"""Makes the tags and the text of an HTML page available to a test."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser


class ParsedHTML(HTMLParser):
    """A page, parsed: its tags with their attributes in order, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.shown, self.innermost = [], {}, [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.innermost = tag

    def handle_data(self, data):
        self.texts.setdefault(self.innermost, []).append(data)
        if self.innermost not in ("script", "style"):
            self.shown.append(data)

    def attributes_of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.shown))


def script_data(html):
    """Return the data that a page gives to its script."""
    return json.loads(zlib.decompress(base64.b64decode(re.search(r'id="data">([^<]*)<', html)[1])))
