"""The built book: no warning, nothing from another address, and every page right in a browser."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTHS = (360, 1280)

# ---- What a page would load from elsewhere, read from the files --------------------------------

OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(
    r"""(?:url\(\s*["']?|@import\s+["'])\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE
)
IN_JS = re.compile(
    r"""(?:\bimport\s*\(?\s*|\bfrom\s*|\bfetch\(\s*|\bimportScripts\(\s*|\bWorker\(\s*"""
    r"""|\.open\(\s*["']\w+["']\s*,\s*|\.(?:src|href)\s*=\s*"""
    r"""|setAttribute\(\s*["'](?:src|href)["']\s*,\s*)["'`]((?:https?:)?//[^"'`\s]+)"""
)
LOADING = {  # which attributes of which elements fetch something; a link to read on (a) does not
    "audio": ["src"],
    "embed": ["src"],
    "iframe": ["src"],
    "image": ["href", "xlink:href"],
    "img": ["src", "srcset"],
    "input": ["src"],
    "link": ["href"],
    "object": ["data"],
    "script": ["src"],
    "source": ["src", "srcset"],
    "track": ["src"],
    "use": ["href", "xlink:href"],
    "video": ["src", "poster"],
}
NOT_LOADED = {"alternate", "author", "canonical", "license", "next", "prev"}  # kinds of <link>


class Loads(HTMLParser):
    """Collects the outside addresses that a page loads, its own styles and scripts included."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag, attributes):
        self.inside = tag if tag in ("script", "style") else ""
        values = {name: value or "" for name, value in attributes}
        if tag == "link" and set(values.get("rel", "").split()) <= NOT_LOADED:
            return
        addresses = [values[name] for name in LOADING.get(tag, []) if name in values]
        self.found += [address for address in addresses if OUTSIDE.match(address)]
        self.found += IN_CSS.findall(values.get("style", ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside:
            self.found += (IN_CSS if self.inside == "style" else IN_JS).findall(data)


def outside_addresses(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return IN_CSS.findall(text)
    if path.suffix == ".js":
        return IN_JS.findall(text)
    page = Loads()
    page.feed(text)
    return page.found


# ---- The book, built once ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    """Build the book as `make book` does, with every warning an error, and return its folder."""
    out = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).parent / "jupyter-book", "build", "-W", "-n", "--keep-going"]
    built = subprocess.run(
        [*command, "--path-output", out, ROOT], capture_output=True, text=True, cwd=out
    )
    lines = re.sub(r"\x1b\[[\d;]*m", "", built.stderr).splitlines()
    wrong = [line for line in lines if re.search(r"WARNING|ERROR", line)]
    assert built.returncode == 0, "\n".join(wrong) or built.stderr[-2000:]
    assert not wrong, "\n".join(wrong)
    return out / "_build" / "html"


def pages(html: Path) -> list[str]:
    """Return the pages that a reader meets, as paths below the book's folder."""
    found = [*html.glob("*.html"), *html.glob("book/*.html"), *html.glob("chapters/*.html")]
    return sorted(path.relative_to(html).as_posix() for path in found)


@pytest.mark.slow
def test_every_page_of_the_contents_is_built(html):
    files = re.findall(r"(?:root|file): *(\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert len(files) > 6
    assert {f"{file}.html" for file in files} | {"index.html", "search.html"} <= set(pages(html))


@pytest.mark.slow
def test_nothing_is_loaded_from_another_address(html):
    files = [path for path in html.rglob("*") if path.suffix in (".html", ".css", ".js", ".svg")]
    assert {path.suffix for path in files} == {".html", ".css", ".js", ".svg"}
    found = {str(path.relative_to(html)): outside_addresses(path) for path in files}
    assert {name: addresses for name, addresses in found.items() if addresses} == {}


@pytest.mark.slow
def test_nothing_of_thebe_is_left(html):
    assert list(html.rglob("*thebe*")) == []
    assert [n for n in pages(html) if "thebe" in (html / n).read_text(encoding="utf-8")] == []


PLANTS = [
    ("page.html", '<script src="https://cdn.example.org/mathjax.js"></script>'),
    ("page.html", '<link rel="stylesheet" href="//cdn.example.org/font-awesome.css">'),
    ("page.html", '<link rel="preload" as="font" href="https://cdn.example.org/a.woff2">'),
    ("page.html", '<img alt="x" src="https://cdn.example.org/a.png">'),
    ("page.html", '<div style="background: url(https://cdn.example.org/a.png)"></div>'),
    ("page.html", '<style>@import "https://cdn.example.org/a.css";</style>'),
    ("page.html", '<script>import("https://cdn.example.org/thebe.js")</script>'),
    ("style.css", "@font-face { src: url('//cdn.example.org/a.woff2') }"),
    ("style.css", "@import url(https://cdn.example.org/a.css);"),
    ("script.js", 'tag.src = "https://cdn.example.org/a.js";'),
    ("script.js", "fetch('https://cdn.example.org/weights.json')"),
]


@pytest.mark.parametrize(("name", "plant"), PLANTS)
def test_the_scan_sees_a_planted_address(tmp_path, name, plant):
    path = tmp_path / name
    path.write_text(f"<body>\n{plant}\n</body>" if name.endswith("html") else plant)
    found = outside_addresses(path)
    assert len(found) == 1 and "cdn.example.org" in found[0]


def test_the_scan_lets_ordinary_links_pass(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        '<link rel="canonical" href="https://example.org/">'
        '<a href="https://example.org/">read on</a> <img src="../a.png" alt="https://example.org">'
        "<pre>import https://example.org</pre><script>const see = 'https://example.org';</script>"
    )
    assert outside_addresses(path) == []


@pytest.mark.slow
def test_the_scan_sees_an_address_planted_in_a_built_page(html, tmp_path):
    page = (html / "chapters" / "02_adding_noise.html").read_text(encoding="utf-8")
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    assert outside_addresses(path) == []
    script = '<script src="https://cdn.example.org/thebe.js"></script></head>'
    path.write_text(page.replace("</head>", script, 1), encoding="utf-8")
    assert outside_addresses(path) == ["https://cdn.example.org/thebe.js"]


# ---- The book in a browser without a network ---------------------------------------------------

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

LOOK = """() => {
  const wrong = [], article = document.querySelector(".bd-article, #search-results");
  const say = (what, element) => wrong.push(what + ": " + element.outerHTML.slice(0, 120));
  for (const math of article.querySelectorAll(".math"))
    if (!math.querySelector("mjx-container")) say("mathematics not rendered", math);
  for (const error of document.querySelectorAll("mjx-merror, mjx-mtext[style*='color: red']"))
    say("mathematics wrong", error);
  for (const image of document.images)
    if (!image.complete || !image.naturalWidth) say("picture not loaded", image);
  for (const image of article.querySelectorAll("img")) {
    const alt = (image.getAttribute("alt") || "").trim();
    if (!alt || /\\.(png|svg|jpe?g|gif|webp)$/.test(alt)) say("picture without words", image);
    if (getComputedStyle(image).filter !== "none") say("picture filtered", image);
  }
  return wrong;
}"""

TOO_WIDE = """() => {
  const page = document.documentElement, wrong = [];
  if (page.scrollWidth > innerWidth)
    wrong.push(`page scrolls sideways: ${page.scrollWidth} > ${innerWidth}`);
  const article = document.querySelector(".bd-article, #search-results");
  const held = element => {
    for (let e = element.parentElement; e && e !== article; e = e.parentElement)
      if (getComputedStyle(e).overflowX !== "visible") return true;
    return false;
  };
  for (const element of article.querySelectorAll("*"))
    if (element.getBoundingClientRect().right > innerWidth + 1 && !held(element)
        && getComputedStyle(element).display !== "inline")
      wrong.push("cut off at the right: " + element.outerHTML.slice(0, 120));
  return wrong;
}"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Start a headless Chromium that can reach nothing but this machine."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = "no page was opened: install Chromium to test the book in a browser"
        if os.environ.get("CI") == "true":  # there a test that does not run is a failure
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--no-first-run", *quiet, offline]
        )
        yield chromium
        chromium.close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    handler = functools.partial(QuietHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="session")
def site(html) -> Iterator[str]:
    server = serve(html)
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def opened(browser, address: str, root: str, scheme: str = "light"):
    """Open a page and return it with a list that fills with whatever goes wrong in it."""
    page = browser.new_page(viewport={"width": WIDTHS[-1], "height": 900}, color_scheme=scheme)
    wrong: list[str] = []

    def asked(request):
        if not request.url.startswith((root, "data:", "blob:")):
            wrong.append(f"asked for {request.url}")

    def answered(response):
        if response.status >= 400:
            wrong.append(f"{response.status} for {response.url}")

    def said(message):
        if message.type in ("error", "warning"):
            wrong.append(f"console {message.type}: {message.text}")

    page.on("request", asked)
    page.on("response", answered)
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.evaluate(
        "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready }"
    )
    return page, wrong


def problems(browser, address: str, root: str, scheme: str = "light") -> list[str]:
    """Open a page in one colour scheme and look at it at every width."""
    page, wrong = opened(browser, address, root, scheme)
    wrong += page.evaluate(LOOK)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(50)  # for the page to be laid out anew
        wrong += [f"{width} px: {problem}" for problem in page.evaluate(TOO_WIDE)]
    theme = page.evaluate("document.documentElement.dataset.theme")
    if theme != scheme:
        wrong.append(f"the page is {theme}, the reader asked for {scheme}")
    page.close()
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_right_in_a_browser(html, site, browser, scheme):
    names = [name for name in pages(html) if name != "index.html"]  # that one only leads on
    found = {name: problems(browser, site + name, site, scheme) for name in names}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.slow
def test_the_index_leads_to_the_front_page(site, browser):
    page = browser.new_page()
    page.goto(site + "index.html")
    page.wait_for_url("**/book/intro.html")
    assert page.locator("h1").first.inner_text().startswith("Stable Diffusion")
    page.close()


@pytest.mark.slow
def test_a_page_is_right_without_a_server(html, browser):
    page = html / "chapters" / "02_adding_noise.html"
    assert problems(browser, page.as_uri(), html.as_uri()) == []


@pytest.mark.slow
def test_chapters_have_mathematics_and_pictures(html, site, browser):
    for name in filter(re.compile(r"chapters/").match, pages(html)):
        page, _ = opened(browser, site + name, site)
        if "the_big_picture" not in name:  # it shows the machine before its mathematics
            assert page.locator(".bd-article mjx-container").count() > 5, name
        assert page.locator(".bd-article figure img").count() > 2, name
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("served", [True, False])
def test_search_finds_a_page(html, site, browser, served):
    root = site if served else html.as_uri() + "/"
    page, wrong = opened(browser, root + "search.html?q=variance", root)
    page.wait_for_selector("#search-results li a")
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("chapters/02_adding_noise" in link for link in links)
    page.close()
    assert wrong == []


@pytest.mark.slow
def test_colours_of_symbols_in_both_spellings(html, browser, tmp_path):
    """LaTeX's own spelling of a colour, and the one that Colab and VS Code read."""
    copy = shutil.copytree(html, tmp_path / "html")
    page = copy / "chapters" / "02_adding_noise.html"
    text = page.read_text(encoding="utf-8")
    planted = "".join(
        rf'<span class="math planted">\(\textcolor{colour}{{\epsilon}}\)</span>'
        for colour in ("[HTML]{B5478F}", "{#B5478F}")
    )
    before, article, after = text.partition('<article class="bd-article">')
    page.write_text(before + article + planted + after, encoding="utf-8")
    opened_page, wrong = opened(browser, page.as_uri(), copy.as_uri())
    symbols = opened_page.locator(".planted mjx-mi")
    colours = symbols.evaluate_all("all => all.map(e => getComputedStyle(e).color)")
    opened_page.close()
    assert wrong == []
    assert colours == ["rgb(181, 71, 143)"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_players_show_one_frame_at_a_time(html, site, browser, scheme):
    names = [n for n in pages(html) if "minisd-player" in (html / n).read_text(encoding="utf-8")]
    assert names
    for name in names:
        page, wrong = opened(browser, site + name, site, scheme)
        for player in page.locator("figure.minisd-player").all():
            frames = 1 + int(player.locator("input").get_attribute("max"))
            strip, window = player.locator("img"), player.locator("div").first
            for frame in (0, frames - 1):
                player.locator("input").fill(str(frame))
                left = window.bounding_box()["x"] - strip.bounding_box()["x"]
                width = strip.bounding_box()["width"] / frames
                assert width == pytest.approx(window.bounding_box()["width"], abs=0.5)
                assert left == pytest.approx(frame * width, abs=1)
                assert strip.evaluate("i => getComputedStyle(i).padding") == "0px"
        page.close()
        assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_explorer_draws_what_its_sliders_say(html, site, browser, scheme):
    names = [n for n in pages(html) if "minisd-explorer" in (html / n).read_text(encoding="utf-8")]
    assert names
    for name in names:
        page, wrong = opened(browser, site + name, site, scheme)
        for explorer in page.locator("figure.minisd-explorer").all():
            drawings = set()
            sliders = explorer.locator("input").all()
            for slider in sliders:
                last = int(slider.get_attribute("max"))
                for value in (0, last):
                    slider.fill(str(value))
                    drawings.add(explorer.locator("svg").inner_html())
                    calls = int(re.search(r"\((\d+) calls", explorer.inner_text()).group(1))
                    line = explorer.locator("polyline").first.get_attribute("points")
                    assert len(line.split()) == calls + 1
            assert len(drawings) >= 4  # three sliders, and each changes the picture
        page.close()
        assert wrong == []


FAULTS = {  # what is planted, and what is said about it
    '<script src="https://cdn.example.org/a.js"></script>': "asked for https://cdn.example.org/a",
    '<script src="missing.js"></script>': "404 for",
    "<script>console.error('broken')</script>": "console error: broken",
    "<script>nowhere()</script>": "error: nowhere is not defined",
    '<img alt="a digit" src="missing.png">': "picture not loaded: <img alt=",
    '<img alt="" src="{picture}">': 'picture without words: <img alt=""',
    '<img alt="../a.png" src="{picture}">': 'picture without words: <img alt="../a.png"',
    '<img alt="odd" style="filter: invert(1) !important" src="{picture}">': "picture filtered",
    r'<span class="math">\(x \right) y\)</span>': "mathematics wrong: <mjx-merror",
    r'<span class="math">\(\nosuchmacro\)</span>': "mathematics wrong: <mjx-mtext",
    '<span class="math">x</span>': "mathematics not rendered",
    '<div style="width: 900px">wide</div>': "360 px: page scrolls sideways",
    '<p style="overflow: visible; width: 800px">wide</p>': "360 px: cut off at the right: <p",
}


@pytest.mark.slow
def test_the_browser_sees_planted_faults(html, browser, tmp_path):
    copy = tmp_path / "html"
    shutil.copytree(html, copy)
    page = copy / "chapters" / "02_adding_noise.html"
    picture = f"../_images/{next((copy / '_images').glob('*.png')).name}"
    server = serve(copy)
    root = f"http://127.0.0.1:{server.server_port}/"
    address = root + "chapters/02_adding_noise.html"
    assert problems(browser, address, root) == []
    text = page.read_text(encoding="utf-8")
    before, article, after = text.partition('<article class="bd-article">')
    planted = "".join(FAULTS).replace("{picture}", picture)
    page.write_text(before + article + planted + after, encoding="utf-8")
    wrong = problems(browser, address, root)
    server.shutdown()
    unseen = [said for said in FAULTS.values() if not any(w.startswith(said) for w in wrong)]
    assert unseen == [], wrong
