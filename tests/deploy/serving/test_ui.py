"""The page, in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.deploy.serving.conftest import KEY, Client
from tests.samples import audio_file, image_file

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
           "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and a sound."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "scene.png").write_bytes(image_file(seed=1))
    (folder / "tone.wav").write_bytes(audio_file())
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        yield play.chromium.launch(executable_path=BROWSER, args=OPTIONS)


@pytest.fixture
def page(client: Client, browser: Browser) -> Iterator[Page]:
    """Connected; fails where the page asks anybody but its server, or breaks."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("request", lambda request: wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(30_000)
    page.goto(f"{client.url}/ui")
    expect(page.get_by_role("status")).to_have_text("Give an API key and connect.")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Connect").press("Enter")
    expect(page.get_by_label("Model")).to_be_enabled()
    yield page
    assert [each for each in wrong if not each.startswith((client.url, "data:", "blob:"))] == []
    page.close()


def took_time(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^\d+ ms$"))


def test_it_needs_a_key_to_say_anything(client: Client, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{client.url}/ui")
    page.get_by_label("API key").fill("not-a-key-of-anybody")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_role("status")).to_contain_text("send a valid API key")
    assert not page.get_by_label("Model").is_enabled()
    page.close()


def test_classify_words_with_a_picture_and_a_sound(page: Page, client: Client, pictures: Path) -> None:
    page.get_by_label("Model").select_option("fused")
    section = page.locator("#classify")
    section.get_by_label("Text").fill("a red disc")
    section.get_by_label("Picture").set_input_files(pictures / "scene.png")
    section.get_by_label("Sound").set_input_files(pictures / "tone.wav")
    expect(section.get_by_role("img")).to_be_visible()
    section.get_by_role("button", name="Classify").click()
    took_time(page)
    assert section.get_by_role("heading").text_content() in ("no", "yes")
    shares = [float(t) for t in section.locator(".bar span:last-child").all_text_contents()]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1, abs=0.01)
    expect(section.get_by_role("img")).to_have_count(0)  # the next question begins anew


def test_compare_things_of_all_kinds(page: Page, pictures: Path) -> None:
    page.get_by_label("Model").select_option("fused")
    page.get_by_role("button", name="Compare").first.click()
    section = page.locator("#compare")
    for n, text in enumerate(("a red disc", "a red disc")):
        section.get_by_label("Text").fill(text)
        section.get_by_role("button", name="Add").click()
        expect(section.locator("#things li")).to_have_count(n + 1)
    section.get_by_label("Picture").set_input_files(pictures / "scene.png")
    section.get_by_role("button", name="Add").click()
    expect(section.locator("#things li")).to_have_count(3)
    section.locator("#do-compare").click()
    took_time(page)
    cells = "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.textContent))"
    rows = section.locator("table tr").evaluate_all(cells)
    matrix = [[float(x) for x in row] for row in rows[1:]]
    assert [matrix[i][i] for i in range(3)] == [1.0] * 3 and matrix[0][1] == 1.0
    assert matrix[0][2] == matrix[2][0] < 1
    assert section.locator("canvas").count() == 3


def test_a_conversation_comes_in_pieces_and_remembers(page: Page) -> None:
    page.get_by_label("Model").select_option("talker")
    page.get_by_role("button", name="Chat").click()
    section = page.locator("#chat")
    section.get_by_label("Task").select_option("answer")
    for n, text in enumerate(("the red star", "and the ring?")):
        section.get_by_label("Text").fill(text)
        section.get_by_role("button", name="Send").click()
        took_time(page)
        turns = section.locator("#log p").all_text_contents()
        assert len(turns) == 2 * n + 2 and turns[-2] == text and turns[-1]
    section.get_by_role("button", name="New conversation").click()
    expect(section.locator("#log p")).to_have_count(0)


def test_translate_and_search(page: Page) -> None:
    page.get_by_label("Model").select_option("talker")
    page.get_by_role("button", name="Translate").first.click()
    page.locator("#translate").get_by_label("Task").is_hidden()
    page.locator("#translate textarea").fill("the red disc\nno")
    page.locator("#do-translate button").click()
    took_time(page)
    assert all(page.locator("#translate .result p").all_text_contents())
    page.get_by_label("Model").select_option("text")
    page.get_by_role("button", name="Classify").first.click()
    page.locator("#labels").fill("two blue squares\nthe red disc")
    page.locator("#classify .composer textarea").fill("the red disc")
    page.locator("#classify .go").click()
    took_time(page)
    expect(page.locator("#classify h2")).to_have_text("the red disc")
    page.get_by_role("button", name="Search").first.click()
    section = page.locator("#search")
    section.locator("#documents").fill("a blue square\na red disc\nno")
    section.locator(".composer textarea").fill("a red disc")
    section.locator(".go").click()
    took_time(page)
    assert section.locator(".bar span:first-child").all_text_contents()[0] == "a red disc"


def test_a_recording_is_a_sound(page: Page) -> None:
    page.get_by_label("Model").select_option("fused")
    section = page.locator("#classify")
    section.get_by_role("button", name="Record").click()
    page.wait_for_timeout(700)
    section.get_by_role("button", name="Stop").click()
    expect(section.locator("audio")).to_have_count(1)
    section.get_by_role("button", name="Classify").click()
    took_time(page)


def test_errors_are_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.get_by_label("Model").select_option("fused")
    section = page.locator("#classify")
    section.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("status")).to_have_text("write something, or choose a file")
    section.get_by_label("Picture").set_input_files(tmp_path / "broken.png")
    section.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("status")).to_contain_text("input[0]")


def test_everything_has_a_name_and_is_reached_by_keys(page: Page) -> None:
    page.get_by_label("Model").select_option("fused")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')].filter(each => !each.labels?.length
        && !each.textContent.trim() && !each.getAttribute('aria-label')).map(each => each.outerHTML)"""
    )
    assert nameless == []
    page.get_by_label("API key").focus()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.tagName"))
    assert "Classify" in seen and "TEXTAREA" in seen and any("Compare" in each for each in seen)
    assert page.evaluate("document.documentElement.lang") == "en"


def test_the_page_is_a_stranger_to_scripts_of_others(client: Client) -> None:
    reply = client.get("/ui", key=None)
    assert reply.status == 200 and "default-src 'none'" in reply.headers["content-security-policy"]
    assert client.get("/ui/page.js", key=None).status == 200
    assert client.get("/ui/../settings.py", key=None).status in (401, 404)
    assert client.get("/ui/nothing", key=None).status == 404
