"""The page itself: tabs, fields and buttons in Gradio, each button a function of `actions`."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("the demo page needs gradio: pip install 'modeling-r2d2[app]'") from error

from starlette.middleware import Middleware

from . import actions
from .actions import Found, InputError
from .gate import MAX_FILE, Gate
from .models import AppModels
from .style import CSS, rows_table, status, theme
from .turns import WAITING, BusyError, Lines

#: Gradio starts every call at once, and at most so many more wait with it: who computes when is decided by `Lines`,
#: where waiting has an end. What a visitor asks while an answer is under way runs next, instead of being dropped.
_QUEUE: dict[str, Any] = {"concurrency_limit": None, "concurrency_id": "models", "trigger_mode": "always_last"}
_TEMPLATE = "一张{}的图片"
_SEED_LIMIT = 2**31 - 1


def build_app(models: AppModels, examples: Sequence[str] = (), template: str = _TEMPLATE) -> gr.Blocks:
    """The page as a Gradio app, with a tab for each thing that the models can do.

    Args:
        examples: queries to click on.
        template: what the zero-shot tab puts labels into at first.

    Raises:
        ValueError: a template without {}.
    """
    if "{}" not in template:
        raise ValueError(f"template is {template!r}; it needs {{}} where the label goes")
    lines = Lines(models)
    with gr.Blocks(title="R2D2", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(_heading(models), elem_classes="r2d2-head")
        with gr.Tabs(overflow_behavior="wrap"):
            if models.can_search:
                with gr.Tab("搜图 Search", id="search"):
                    _search_tab(models, lines, examples)
            if models.can_rank:
                with gr.Tab("匹配 Match", id="match"):
                    _match_tab(models, lines)
            with gr.Tab("分类 Labels", id="labels"):
                _labels_tab(models, lines, template)
            if models.text_to_image is not None:
                with gr.Tab("画图 Draw", id="draw"):
                    _draw_tab(models, lines, examples)
    page.queue(max_size=WAITING, api_open=False)
    return page


def launch_app(page: gr.Blocks, host: str | None = None, port: int | None = None, block: bool = True) -> str:
    """Serve the page until it is interrupted. Nothing is sent anywhere: no analytics, no fonts, no share link.

    Args:
        host: default: Gradio's, 127.0.0.1; on a Space, the Space's.
        port: default: Gradio's, the first free one from 7860; on a Space, the Space's.
        block: False: return at once, with the page served in the background.

    Returns:
        the address.

    Raises:
        OSError: the port is taken.
    """
    actions.DECODER.start()
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        quiet=True,
        share=False,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_FILE,
        show_error=False,
        app_kwargs={"middleware": [Middleware(Gate)]},
        theme=theme(),
        css=CSS,
        js="() => { document.documentElement.lang = 'zh-CN'; }",
    )
    return address


# -- tabs ---------------------------------------------------------------------------------------


def _search_tab(models: AppModels, lines: Lines, examples: Sequence[str]) -> None:
    count = models.images
    with gr.Row(equal_height=True):
        query = _text_line("要找什么 / What to find", "例如：一只猫 / in Chinese", "query")
        button = gr.Button("搜索 Search", variant="primary", scale=1, min_width=140, elem_id="search-button")
    shown = gr.Examples([[text] for text in examples], [query], label="例子 / Examples") if examples else None
    with gr.Accordion("选项 / Options", open=False):
        top_k = gr.Slider(1, actions.MAX_TOP_K, 12, step=1, label="显示几张 / Pictures to show", elem_id="top-k")
        candidates = gr.Slider(
            0,
            actions.MAX_CANDIDATES,
            128,
            step=1,
            label="候选数：余弦最高的多少张再由排序模型打分 / Candidates for the ranker",
            visible=models.can_rank,
            elem_id="candidates",
        )
        minimum = gr.Slider(
            0,
            1,
            0,
            step=0.01,
            label="最低匹配概率，0 为不限 / Minimum match probability, 0: none",
            visible=models.can_rank,
            elem_id="minimum",
        )
    with gr.Accordion("用图片搜索 / Search by a picture", open=False, elem_id="by-picture"), gr.Row():
        image = _image_field("查询图片 / Query picture", "query-picture")
        with gr.Column():
            gr.HTML(status("以图搜图只用余弦相似度 / A picture is compared by cosine alone"))
            by_image = gr.Button("以图搜图 / Search by picture", variant="primary", elem_id="picture-button")
    message = gr.HTML(elem_classes="r2d2-status", elem_id="search-status")
    gallery = _gallery("结果 / Results", "search-gallery")
    legend = []
    if models.can_rank:
        raw = models.retriever.calibration is None
        legend.append(
            f"匹配 match probability（{_calibrated(models)}）· 余弦 cosine · "
            f"得分 score = {'' if raw else '未校准的 uncalibrated '}匹配 + 余弦"
        )

    def run(action: Callable[..., Found]) -> Callable[..., tuple]:
        def answer(*values):
            start = time.perf_counter()
            with lines.computing():
                found = action(models, *values)
            done = f"{len(found.tiles)} / {count:,} 张图片 pictures · {time.perf_counter() - start:.2f} s"
            if not found.tiles:
                done = f"没有图片达到最低匹配概率 / no picture reaches the minimum match probability · {done}"
            return _tiles(found), status(done, *(legend if found.tiles else []), *found.notes)

        return answer

    outputs = [gallery, message]
    search = _guarded(run(actions.search_by_text), [])
    for_text = {"fn": search, "inputs": [query, top_k, candidates, minimum], "outputs": outputs}
    gr.on([button.click, query.submit], api_name="search", **for_text, **_QUEUE)
    if shown is not None:
        shown.load_input_event.then(api_visibility="private", **for_text, **_QUEUE)
    by_image.click(
        _guarded(lines.with_image(run(actions.search_by_image)), []),
        [image, top_k],
        outputs,
        api_name="search_by_image",
        preprocess=False,
        **_QUEUE,
    )


def _match_tab(models: AppModels, lines: Lines) -> None:
    known = f"每条文字与图片相配的概率 / probability that they belong together（{_calibrated(models)}）"
    with gr.Row():
        with gr.Column():
            image = _image_field("图片 / Picture", "match-picture")
            texts = gr.Textbox(
                label="文字，每行一条 / Texts, one a line",
                placeholder="一只猫\n一只狗",
                lines=4,
                max_lines=12,
                elem_id="match-texts",
            )
            button = gr.Button("匹配 / Match", variant="primary", elem_id="match-button")
        with gr.Column():
            message = gr.HTML(status(known), elem_classes="r2d2-status", elem_id="match-status")
            table = gr.HTML(elem_classes="r2d2-rows", elem_id="match-rows", apply_default_css=False)

    def answer(image, texts):
        with lines.computing():
            rows, notes = actions.match(models, image, texts)
        return rows_table(rows, "匹配<br>match"), status(known, *notes)

    button.click(
        _guarded(lines.with_image(answer), ""),
        [image, texts],
        [table, message],
        api_name="match",
        preprocess=False,
        **_QUEUE,
    )


def _labels_tab(models: AppModels, lines: Lines, template: str) -> None:
    with gr.Row():
        with gr.Column():
            image = _image_field("图片 / Picture", "labels-picture")
            labels = gr.Textbox(
                label="标签，用逗号或换行分开 / Labels, by commas or lines",
                placeholder="猫，狗，火车",
                lines=2,
                elem_id="labels",
            )
            with gr.Accordion("选项 / Options", open=False):
                prompt = gr.Textbox(
                    template,
                    label="提示模板，{} 处填标签 / Prompt, {} for the label",
                    max_length=100,
                    elem_id="template",
                )
                use_ranker = gr.Checkbox(
                    label="每个标签单独给出匹配概率 / Match probability of each label by itself",
                    visible=models.can_rank,
                    elem_id="use-ranker",
                )
            button = gr.Button("分类 / Classify", variant="primary", elem_id="labels-button")
        with gr.Column():
            message = gr.HTML(elem_classes="r2d2-status", elem_id="labels-status")
            table = gr.HTML(elem_classes="r2d2-rows", elem_id="labels-rows", apply_default_css=False)

    def answer(image, names, prompt, use_ranker):
        with lines.computing():
            rows, notes = actions.classify(models, image, names, prompt, bool(use_ranker))
        return rows_table(rows, "匹配<br>match" if use_ranker else "概率<br>probability"), status(*notes)

    button.click(
        _guarded(lines.with_image(answer), ""),
        [image, labels, prompt, use_ranker],
        [table, message],
        api_name="classify",
        preprocess=False,
        **_QUEUE,
    )


def _draw_tab(models: AppModels, lines: Lines, examples: Sequence[str]) -> None:
    with gr.Row(equal_height=True):
        prompt = _text_line("画什么 / What to draw", "例如：红苹果 / in Chinese", "prompt")
        button = gr.Button("画图 Draw", variant="primary", scale=1, min_width=140, elem_id="draw-button")
    if examples:
        gr.Examples([[text] for text in examples], [prompt], label="例子 / Examples")
    with gr.Accordion("选项 / Options", open=False):
        count = gr.Slider(1, actions.MAX_IMAGES, 4, step=1, label="画几张 / Pictures")
        steps = gr.Slider(1, actions.MAX_STEPS, 25, step=1, label="去噪步数 / Denoising steps")
        guidance = gr.Slider(0, 20, 2.0, step=0.5, label="文字引导强度 / Guidance scale")
        seed = gr.Number(0, minimum=0, maximum=_SEED_LIMIT, precision=0, label="随机种子 / Seed")
    message = gr.HTML(elem_classes="r2d2-status", elem_id="draw-status")
    gallery = _gallery("画出的图 / Pictures", "draw-gallery")

    # a default that is a gr.Progress is how Gradio knows that a function reports progress
    def answer(prompt, count, steps, guidance, seed, progress=gr.Progress()):  # noqa: B008
        def report(step: int, steps: int) -> None:
            progress((step, steps), unit="step")

        start = time.perf_counter()
        with lines.computing():
            found = actions.draw(models, prompt, count, steps, guidance, seed, progress=report)
        return _tiles(found), status(f"{time.perf_counter() - start:.1f} s", *found.notes)

    gr.on(
        [button.click, prompt.submit],
        _guarded(answer, []),
        [prompt, count, steps, guidance, seed],
        [gallery, message],
        api_name="draw",
        **_QUEUE,
    )


# -- parts --------------------------------------------------------------------------------------


def _heading(models: AppModels) -> str:
    facts = [f"模型 model: {models.name}"]
    if models.can_search:
        facts.append(f"{models.images:,} 张图片 pictures")
    if not models.can_rank:
        facts.append("只有预排序，无匹配概率 pre-ranking only")
    missing = []
    if not models.can_search:
        missing.append("搜图请加 --index INDEX / to search pictures: r2d2 app --index INDEX")
    return f"<h1>R2D2 · 中文图文</h1>{status(' · '.join(facts), *missing)}"


def _text_line(label: str, placeholder: str, elem_id: str) -> gr.Textbox:
    # wide enough that the button beside it goes below on a phone
    return gr.Textbox(label=label, placeholder=placeholder, scale=5, min_width=280, elem_id=elem_id)


def _image_field(label: str, elem_id: str) -> gr.Image:
    # Events with a picture have preprocess=False: a file that is no picture then reaches our own message.
    return gr.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260, elem_id=elem_id
    )


def _gallery(label: str, elem_id: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=4,
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_id=elem_id,
        elem_classes="r2d2-gallery",
    )


def _tiles(found: Found) -> list[tuple]:
    return [(tile.image, tile.caption) for tile in found.tiles]


def _calibrated(models: AppModels) -> str:
    return "未校准 not calibrated" if models.retriever.calibration is None else "已校准 calibrated"


def _guarded(answer: Callable[..., tuple], empty: Any) -> Callable[..., tuple]:
    """`answer`, or nothing and the message where a visitor's input was wrong. Any other error is a defect: it goes to
    the server's log, and the page shows that there was one."""

    @functools.wraps(answer)
    def guarded(*values):
        try:
            return answer(*values)
        except InputError as error:
            return empty, status(str(error), error=True)
        except BusyError:
            busy = "现在访问的人太多，请稍后再试 / too many visitors now: come back in a moment"
            return empty, status(busy, error=True)

    return guarded


__all__ = ["build_app", "launch_app"]
