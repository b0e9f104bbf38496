"""What tests of HTML pages share: what a page holds, as a browser reads it."""

import html.parser


class Page(html.parser.HTMLParser):
    """Collects tags, attributes, what they point to, texts, and blocks of code."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.sources, self.text, self.code = [], [], [], [], []
        self._inside = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside.append(tag)
        self.attributes += attrs
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "pre":
            self.code.append("")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._inside:
            self.text.append(data)
        if "pre" in self._inside:
            self.code[-1] += data

    def values(self, name):
        """Return the values of an attribute, in the order of the page."""
        return [value for key, value in self.attributes if key == name]
