"""What the report says, in each language."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Refusal

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "title": "Fine-tuning compared",
        "summary": "{best} came first of {arms} ways to fine-tune {model} here: {metric} {mean} ({low}–{high}), judged on {rows} rows it never saw.",
        "summary_gain": "{best} came first of {arms} ways to fine-tune {model} here: {metric} went from {before} to {mean} ({low}–{high}), judged on {rows} rows it never saw.",
        "leads": "No other way comes within the noise of it.",
        "ties": "{others} cannot be told from it on this many rows and seeds; the cheapest of them to keep is {cheapest} ({artifact}, trained in {time}).",
        "baseline_best": "No training was needed: this baseline is not beaten by any method tried here.",
        "table": "The table, measured",
        "table_note": "Sorted by {metric}. Bold would lead beyond chance; = cannot be told from the best (95 %, paired over the rows judged, with the scatter over seeds, adjusted for the number of comparisons). Grey rows need no training.",
        "method": "method", "interval": "95 % interval", "gain": "gain", "trained": "trained", "share": "share", "artifact": "artifact", "memory": "peak memory",
        "time": "time", "tokens": "tokens/s", "latency": "one prediction", "merges": "merges", "forgot": "forgot", "yes": "yes", "no": "no", "rate": "rate, found in",
        "gain_note": "gain: over the model before training. latency: one row at a time, and how much longer than the untouched model. forgot: rise of the loss on a general text, in nats.",
        "rate_note": "rate: found by a search on rows held out of the training rows, and the seconds that its candidates trained, which no other column counts.",
        "guide": "What the guide says of them",
        "does": "what it does", "strength": "for it", "weakness": "against it", "fits": "where it fits", "here": "here",
        "cost": "Quality against cost", "cost_note": "The grey line is the Pareto front: nothing cheaper is as good. Bars are 95 % intervals.",
        "seconds": "seconds to train", "artifact_mb": "megabytes to keep",
        "learning": "While they learn", "learning_note": "On the eval rows, mean over seeds. Nothing was chosen by these values.", "steps": "steps",
        "forgetting": "What they forgot",
        "forgetting_note": "Loss on {kind}, in a general text: dashed before, bars after training. Longer bars have forgotten more.",
        "general_loss": "loss on a general text, nats", "next token": "the next token", "halves of a passage": "telling which halves of a passage belong together",
        "tasks": "Task by task", "tasks_note": "Main metric of each task, mean over seeds.", "transfer_note": "Coloured: what a task gains or loses by the company of the others, against being trained alone.",
        "sequence": "What is remembered", "sequence_note": "Rows: after each stage; columns: the tasks, in the order in which they came. Down a column a task fades, or does not.",
        "after_stage": "after {stage}", "kept_acc": "mean at the end", "kept_bwt": "backward transfer", "kept_fwt": "forward transfer", "kept_forgetting": "forgetting",
        "classes": "Class by class", "classes_note": "{what}, mean over seeds. Darker is better; n is how many rows have the class.",
        "recall": "Share of a class's rows that were recognised", "f1": "F1 of the class",
        "differences": "Where they disagree", "differences_note": "Ten eval rows on which the arms differ most (first seed of each).",
        "asked": "row", "expected": "expected", "answers": "what they said",
        "again": "To run it again", "again_note": "Everything that decided these figures. The same command continues or reproduces them.",
        "command": "command", "recipe": "recipe", "machine": "machine", "seeds": "seeds", "made": "made", "footer": "Made by Tunesmith. This page loads nothing from anywhere.",
    },
    "zh-CN": {
        "title": "微调方法实测对比",
        "summary": "在这份数据上，{arms} 种微调 {model} 的方法中 {best} 排名第一：{metric} 为 {mean}（{low}–{high}），在 {rows} 条未参与训练的样本上评测。",
        "summary_gain": "在这份数据上，{arms} 种微调 {model} 的方法中 {best} 排名第一：{metric} 从 {before} 变为 {mean}（{low}–{high}），在 {rows} 条未参与训练的样本上评测。",
        "leads": "其他方法与它的差距都超出了随机波动。",
        "ties": "以目前的样本数和种子数，{others} 与它无法区分；其中保存成本最低的是 {cheapest}（{artifact}，训练用时 {time}）。",
        "baseline_best": "这里不需要训练：试过的方法都没有超过这个基线。",
        "table": "实测对比表",
        "table_note": "按 {metric} 排序。粗体表示领先超出随机波动；= 表示与最好者无法区分（95%，逐样本配对，计入种子间波动，并按比较次数校正）。灰色行不需要训练。",
        "method": "方法", "interval": "95% 区间", "gain": "提升", "trained": "训练参数", "share": "占比", "artifact": "产物大小", "memory": "内存峰值",
        "time": "时间", "tokens": "词元/秒", "latency": "单条预测", "merges": "可合并", "forgot": "遗忘", "yes": "是", "no": "否", "rate": "学习率与搜索用时",
        "gain_note": "提升：相对于训练前的模型。单条预测：逐条推理的时间，以及相对原模型的倍数。遗忘：通用文本上损失的增加（nat）。",
        "rate_note": "学习率：在从训练集中留出的样本上搜索得到；后面是各候选的训练用时，未计入其他列。",
        "guide": "指南怎么说",
        "does": "做法", "strength": "优点", "weakness": "缺点", "fits": "适用场景", "here": "实测",
        "cost": "质量与成本", "cost_note": "灰线是帕累托前沿：没有更便宜而同样好的方法。竖线是 95% 区间。",
        "seconds": "训练时间（秒）", "artifact_mb": "产物大小（MB）",
        "learning": "学习过程", "learning_note": "评测集上的指标，取各种子的平均。没有用这些数值做任何选择。", "steps": "步数",
        "forgetting": "忘掉了什么",
        "forgetting_note": "通用文本上的损失（{kind}）：虚线为训练前，横条为训练后。横条越长，遗忘越多。",
        "general_loss": "通用文本上的损失（nat）", "next token": "预测下一个词元", "halves of a passage": "判断段落的前后两半是否属于一起",
        "tasks": "逐任务比较", "tasks_note": "各任务的主要指标，取各种子的平均。", "transfer_note": "彩色数字：与单独训练相比，和其他任务一起训练带来的得失。",
        "sequence": "记住了多少", "sequence_note": "每行为一个阶段结束之后，每列为一个任务（按到来的顺序）。沿一列向下看，可见该任务是否被遗忘。",
        "after_stage": "阶段 {stage} 后", "kept_acc": "最终平均", "kept_bwt": "后向迁移", "kept_fwt": "前向迁移", "kept_forgetting": "遗忘量",
        "classes": "逐类比较", "classes_note": "{what}，取各种子的平均。颜色越深越好；n 为该类的样本数。",
        "recall": "每类样本被正确识别的比例", "f1": "每类的 F1",
        "differences": "分歧最大的样本", "differences_note": "各方法判断差别最大的十条评测样本（各取第一个种子）。",
        "asked": "样本", "expected": "答案", "answers": "各方法的判断",
        "again": "如何重现", "again_note": "决定这些数字的全部设置。同一命令可以继续或重现。",
        "command": "命令", "recipe": "配方", "machine": "机器", "seeds": "种子", "made": "时间", "footer": "由 Tunesmith 生成。本页不加载任何外部资源。",
    },
}  # fmt: skip


def words(language: str) -> Mapping[str, str]:
    if language not in WORDS:
        raise Refusal(f"there is no report in {language!r}", where="--lang", fix=" or ".join(WORDS))
    return WORDS[language]
