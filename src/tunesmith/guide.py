"""The guide that this project makes executable: fourteen rows, each with what it does, what speaks for and against it, and where it fits."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "zh-CN")


@dataclass(frozen=True)
class Text:
    name: str
    does: str
    strength: str
    weakness: str
    fits: str


@dataclass(frozen=True)
class Row:
    """`kind`: which table of a recipe answers it. `texts` by language."""

    kind: str  # method | objective | stream
    texts: dict[str, Text]


def row(kind: str, en: tuple[str, str, str, str, str], zh: tuple[str, str, str, str, str]) -> Row:
    return Row(kind, {"en": Text(*en), "zh-CN": Text(*zh)})


FURTHER: dict[str, Row] = {  # what belongs to a row of the guide without being one
    "hard_prompt": row(
        "method",
        (
            "designed prompt",
            "words around the text; nothing is trained",
            "free to train; zero- and few-shot; runs on any server",
            "design needs skill, or a search; needs a capable model",
            "few or no examples",
        ),
        (
            "人工提示",
            "在文本前后加词语，不训练任何参数",
            "无需训练，零样本和少样本可用，任何服务都能运行",
            "需要设计技巧或搜索，依赖模型能力",
            "样本极少或没有",
        ),
    ),
    "cloze": row(
        "objective",
        (
            "cloze",
            "labels are words that a language model fills in",
            "uses what the vocabulary knows; few examples",
            "needs a model with its vocabulary, and words for the labels",
            "few-shot classification",
        ),
        ("完形填空", "把标签变成语言模型要填的词", "利用词表中的知识，样本少时有效", "需要带词表的模型和标签词", "少样本分类"),
    ),
}

GUIDE: dict[str, Row] = {
    "full": row(
        "method",
        ("full", "every parameter moves", "adapts fully; good with much data", "compute; overfits on little data", "much data, much compute"),
        ("全参数微调", "所有参数都参与训练", "充分适应任务，数据多时效果好", "计算成本高，数据少时容易过拟合", "数据量大、算力充足"),
    ),
    "head": row(
        "method",
        ("head only", "a head on a frozen trunk", "cheap; keeps what was learnt before", "cannot change representations", "little data, little compute"),
        ("只训练头部", "主干冻结，只训练输出层", "便宜，保留预训练知识", "不能改变表示", "数据少、算力少"),
    ),
    "layers": row(
        "method",
        ("some layers", "the last blocks move", "cheap; fits little data", "may leave unused what lower blocks could learn", "little data, little compute"),
        ("部分层微调", "只训练最后几层", "便宜，适合小数据", "低层学到的知识可能用不上", "数据少、算力少"),
    ),
    "adapter": row(
        "method",
        (
            "adapter",
            "small bottlenecks in each block",
            "few parameters; many tasks on one base",
            "adds time to each prediction; a structure to choose",
            "many tasks, limited resources",
        ),
        ("适配器", "每层插入小型瓶颈模块", "参数少，一个底座可服务多任务", "推理变慢，结构需要选择", "多任务、资源有限"),
    ),
    "prompt": row(
        "method",
        ("prompt", "learnt vectors before the text", "nearly nothing to store", "longer inputs; slow to learn", "few examples, many tasks"),
        ("提示微调", "在文本前加入可学习的向量", "几乎不占存储", "输入变长，学得慢", "少样本、多任务"),
    ),
    "prefix": row(
        "method",
        ("prefix", "learnt keys and values in each block", "few parameters; steers generation", "a length to choose; cannot be merged", "generation, dialogue"),
        ("前缀微调", "每层加入可学习的键和值", "参数少，适合控制生成", "长度需要选择，不能合并", "文本生成、对话"),
    ),
    "lora": row(
        "method",
        ("LoRA", "low-rank changes of weight matrices", "few parameters; merges without cost", "a rank and targets to choose", "light tuning of large models"),
        ("LoRA", "对权重矩阵做低秩更新", "参数少，可无损合并", "秩和目标层需要选择", "大模型的轻量微调"),
    ),
    "bitfit": row(
        "method",
        ("BitFit", "biases only", "lightest; merges", "less expressive than LoRA or adapters", "classification and tagging on little data"),
        ("BitFit", "只训练偏置", "最轻量，可合并", "表达能力不如 LoRA 和适配器", "小数据上的分类和标注"),
    ),
    "distil": row(
        "objective",
        ("distillation", "a small student imitates a large teacher", "light to deploy", "one more training; a teacher is needed", "compression, deployment"),
        ("知识蒸馏", "小模型模仿大模型", "部署轻量", "多一步训练，需要教师模型", "模型压缩与部署"),
    ),
    "sequence": row(
        "stream",
        (
            "continual",
            "tasks one after another",
            "tasks may arrive over time",
            "forgets without a means: replay, derpp; without old rows route, si, olora",
            "changing environments",
        ),
        ("持续学习", "任务先后到来，依次学习", "能不断接受新任务", "需要防遗忘：replay、derpp；不留旧数据时用 route、si、olora", "变化的任务环境"),
    ),
    "few": row(
        "stream",
        ("few-shot", "a handful of examples a class", "when data is scarce", "limited quality; scatter between draws", "scarce data"),
        ("少样本", "每类只有几个样本", "数据稀缺时可用", "质量有限，波动大", "数据稀缺"),
    ),
    "mix": row(
        "stream",
        ("multi-task", "several tasks at once", "shared parameters generalise better", "losses must be balanced", "related tasks"),
        ("多任务", "多个任务同时训练", "共享参数，泛化更好", "损失需要平衡", "相关的任务"),
    ),
    "reinforce": row(
        "objective",
        (
            "reinforcement",
            "a reward is maximised, or preferred answers are made likelier",
            "goals that no label states",
            "complex, costly; rewards are gamed",
            "dialogue, games, verifiable answers",
        ),
        ("强化学习", "最大化奖励，或让更受偏好的回答更可能出现", "能优化标签表达不了的目标", "复杂、昂贵，奖励可能被钻空子", "对话、游戏、可验证的答案"),
    ),
    "contrast": row(
        "objective",
        ("contrastive", "similar close, different apart", "better representations", "needs pairs and a loss to choose", "similarity, retrieval"),
        ("对比学习", "拉近相似样本，推开不同样本", "表示更好", "需要样本对和对比损失", "语义相似度、检索"),
    ),
}
