"""Names of training arguments and measures in the two languages of the cards."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
UNKNOWN = {"en": "unknown", "zh": "未知"}
#: Always shown of a training run, known or not.
TRAINING_SHOWN = ("max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay", "seed")
TRAINING = {
    "task": ("task", "任务"),
    "data": ("data, counted", "数据量"),
    "objectives": ("objectives", "训练目标"),
    "published": ("towers (a teacher's are the moving average)", "双塔权重（教师的为滑动平均）"),
    "losses": ("losses", "损失"),
    "trained_share": ("parameters trained", "训练的参数"),
    "num_train_epochs": ("epochs", "轮数"),
    "max_steps": ("steps", "步数"),
    "steps_made": ("steps made", "已训练步数"),
    "per_device_train_batch_size": ("batch size per worker", "每进程批大小"),
    "gradient_accumulation_steps": ("gradient accumulation", "梯度累积"),
    "learning_rate": ("learning rate", "学习率"),
    "lr_scheduler_type": ("schedule", "学习率调度"),
    "warmup_steps": ("warm-up (steps, or a share below 1)", "预热（步数，小于 1 时为比例）"),
    "weight_decay": ("weight decay", "权重衰减"),
    "max_grad_norm": ("gradient norm at most", "梯度范数上限"),
    "optim": ("optimiser", "优化器"),
    "bf16": ("bf16", "bf16"),
    "fp16": ("fp16", "fp16"),
    "seed": ("seed", "随机种子"),
    "final_loss": ("last logged loss", "最后记录的损失"),
    "seconds": ("seconds of training", "训练秒数"),
}
#: Where training began, by what `r2d2 pretrain` was given; names are filled in.
STARTS = {
    "model": ("{model}", "{model}"),
    "preset": ("none: random weights (preset {preset})", "无：随机权重（预设 {preset}）"),
    "config": ("none: random weights ({config})", "无：随机权重（{config}）"),
    "clip": (
        "image tower of {clip}, text tower of {roberta}; the rest began at random",
        "图像塔取自 {clip}，文本塔取自 {roberta}，其余随机初始化",
    ),
}
#: What scores a candidate of the second stage.
SCORES = {
    "fused": ("the fused score, cosine / τ + log-odds of a match", "融合打分，即余弦 / τ + 匹配的对数几率"),
    "published": ("the published score, cosine + match probability", "作者的打分，即余弦 + 匹配概率"),
}
_ZH_MEASURES = (
    (" (fused score)", "（融合打分）"),
    (" (published score)", "（作者的打分）"),
    ("pre-ranking + ranking", "预排序 + 排序"),
    ("pre-ranking", "预排序"),
    ("text→image", "文→图"),
    ("image→text", "图→文"),
    ("mean recall", "平均召回率"),
    ("accuracy at the best threshold", "最佳阈值下的准确率"),
    ("best threshold", "最佳阈值"),
    ("mean per class", "各类平均"),
    ("exactly right", "完全一致"),
)
_ZH_TASKS = {
    "Image-text retrieval": "图文检索",
    "Image-text matching": "图文匹配",
    "Zero-shot image classification": "零样本图像分类",
    "Image captioning": "图像描述",
}
_ZH_COUNTS = {
    "pictures": "图片",
    "texts": "文本",
    "classes": "类别",
    "prompts": "提示模板",
    "references": "参考描述",
    "matching pairs": "匹配对",
    "others": "不匹配对",
}


def pick(pair: tuple[str, str], language: Language) -> str:
    """The English or the Chinese one."""
    return pair[LANGUAGES.index(language)]


def measure(title: str, language: Language) -> str:
    """A measure's title (`evaluation.results.metric_title`) in a language."""
    if language == "zh":
        for english, chinese in _ZH_MEASURES:
            title = title.replace(english, chinese)
    return title


def task(title: str, language: Language) -> str:
    """A task's title (`evaluation.results.task_title`) in a language."""
    return _ZH_TASKS[title] if language == "zh" else title


def counts(values: dict[str, int], language: Language) -> str:
    """Sizes of what was judged, as a reader sees them."""
    if language == "zh":
        return "，".join(f"{_ZH_COUNTS.get(name, name)} {count:,}" for name, count in values.items())
    return ", ".join(f"{count:,} {name}" for name, count in values.items())
