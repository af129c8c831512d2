"""The page in a browser, as a visitor uses it."""

import re
import urllib.error
import urllib.request

import pytest

from modeling_r2d2.app import actions
from tests.app.conftest import NAMES

QUERY = "#query :is(textarea, input)"
WAIT = 60_000  # milliseconds; on a busy machine
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page, loaded once; and what it must not have: requests to other servers, and scripts that failed."""
    page = browser.new_page(viewport=DESKTOP, locale="zh-CN")
    page.set_default_timeout(WAIT)
    wrong = []

    def requested(request):
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    page.on("request", requested)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.locator(QUERY).wait_for()
    yield page, wrong
    page.close()


@pytest.fixture
def page(opened):
    page, wrong = opened
    page.set_viewport_size(DESKTOP)
    page.get_by_role("tab", name="搜图 Search").click()
    yield page
    assert wrong == []


def ask(page, text: str) -> None:
    page.locator(QUERY).fill(text)
    page.locator("#search-button").click()


def captions(page, count: int) -> list[str]:
    page.wait_for_function("n => document.querySelectorAll('#search-gallery .thumbnail-item').length === n", arg=count)
    return page.locator("#search-gallery .caption-label").all_inner_texts()


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_search_by_text(page, models):
    ask(page, "黄鸟")
    expected = [tile.caption for tile in actions.search_by_text(models, "黄鸟", 12, 128, 0).tiles]
    assert captions(page, len(NAMES)) == expected
    page.wait_for_function(
        "[...document.querySelectorAll('#search-gallery img')].every(image => image.complete && image.naturalWidth > 1)"
    )
    sizes = page.evaluate("[...document.querySelectorAll('#search-gallery img')].map(image => image.naturalWidth)")
    assert sizes == [40] * len(NAMES)
    assert "8 / 8 张图片" in page.locator("#search-status").inner_text()
    # an example, clicked on
    page.get_by_role("button", name="小船", exact=True).click()
    expected = [tile.caption for tile in actions.search_by_text(models, "小船", 12, 128, 0).tiles]
    page.wait_for_function(
        "caption => document.querySelector('#search-gallery .caption-label')?.innerText === caption", arg=expected[0]
    )


def test_wrong_input_is_named_on_the_page(page, tmp_path):
    ask(page, "马")
    captions(page, len(NAMES))
    ask(page, "   ")
    error = page.locator("#search-status .r2d2-error")
    error.wait_for()
    assert error.inner_text() == "请先输入文字 / enter a text first"
    assert page.locator("#search-gallery .thumbnail-item").count() == 0  # not the pictures of the query before
    page.get_by_role("tab", name="匹配 Match").click()
    page.locator("#match-texts textarea").fill("马")
    page.locator("#match-button").click()
    error = page.locator("#match-status .r2d2-error")
    error.wait_for()
    assert "请先选择一张图片" in error.inner_text()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.locator("#match-picture input[type=file]").set_input_files(broken)
    page.locator("#match-picture img").wait_for(state="attached")
    page.locator("#match-button").click()
    page.locator("#match-status .r2d2-error", has_text="无法读取这张图片").wait_for()


def test_match_and_labels(page, models, place):
    page.get_by_role("tab", name="匹配 Match").click()
    page.locator("#match-picture input[type=file]").set_input_files(place.image("马"))
    page.locator("#match-picture img").wait_for()
    page.locator("#match-texts textarea").fill("一只猫\n马\n<b>白狗</b>")
    page.locator("#match-button").click()
    page.locator("#match-rows table").wait_for()
    rows, _ = actions.match(models, place.image("马"), "一只猫\n马\n<b>白狗</b>")
    shown = [line.split() for line in page.locator("#match-rows tr").all_inner_texts()[1:]]
    assert shown == [[row.text, actions.percent(row.probability), f"{row.cosine:.3f}"] for row in rows]

    page.get_by_role("tab", name="分类 Labels").click()
    page.locator("#labels-picture input[type=file]").set_input_files(place.image("小船"))
    page.locator("#labels-picture img").wait_for()
    page.locator("#labels textarea").fill("猫，船，山")
    page.locator("#labels-button").click()
    page.locator("#labels-rows table").wait_for()
    rows, _ = actions.classify(models, place.image("小船"), "猫，船，山", "一张{}的图片")
    shown = [line.split() for line in page.locator("#labels-rows tr").all_inner_texts()[1:]]
    assert shown == [[row.text, actions.percent(row.probability)] for row in rows]


def test_phone(page, place):
    """At 390 pixels nothing has to be scrolled sideways, in any tab, and every tab can be reached."""
    page.set_viewport_size(PHONE)
    ask(page, "黄鸟")
    captions(page, len(NAMES))
    assert fits(page)
    box = page.locator("#search-gallery .thumbnail-item").first.bounding_box()
    assert 120 < box["width"] < 195  # two side by side
    figures = page.locator("#search-gallery .caption-label").first
    assert figures.evaluate(
        "label => label.scrollWidth <= label.clientWidth && label.scrollHeight <= label.clientHeight"
    )
    page.locator("#by-picture button").first.click()
    page.locator("#query-picture input[type=file]").set_input_files(place.image("红花"))
    page.locator("#query-picture img").wait_for()
    page.locator("#picture-button").click()
    page.locator("#search-gallery .caption-label", has_text=re.compile(r"1 · 红花\.png")).wait_for()
    for name in ("匹配 Match", "分类 Labels", "画图 Draw"):
        page.get_by_role("tab", name=name).click()
        page.get_by_role("tab", name=name, selected=True).wait_for()
        assert fits(page), name


def test_draw(page):
    page.get_by_role("tab", name="画图 Draw").click()
    page.locator("#prompt textarea, #prompt input").first.fill("红花")
    page.locator("#draw-button").click()
    page.wait_for_function("document.querySelectorAll('#draw-gallery .thumbnail-item').length === 4")
    assert "种子 seed" in page.locator("#draw-gallery .caption-label").first.inner_text()


def test_files_of_the_server_are_not_served(address, place):
    """Neither the pictures of the index nor anything else by its path."""
    for path in (place.image("马"), place.index / "manifest.json", "/etc/hostname"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}gradio_api/file={urllib.request.quote(str(path))}")
        assert refused.value.code in (403, 404)
